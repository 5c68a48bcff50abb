"""Fetch one file from the first mirror that has it: resumed where it was cut, checked before it counts."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evener.errors import InputError

Progress = Callable[[int, int | None], None]

#: A mirror that cuts the line is asked for the rest this many times before the next one's turn.
ATTEMPTS = 5

#: No answer may be longer: a server that never stops must not fill the disk.
MAX_NBYTES = 8 * 1024**3

_CHUNK = 256 * 1024


class _Failed(Exception):
    """This attempt gave no good file; the text says why."""


class _Cut(_Failed):
    """The line broke before the end; if anything arrived, asking for the rest is worth it."""


def fetch(
    urls: Sequence[str], target: Path, *, sha256: str, progress: Progress | None = None, timeout: float = 30.0
) -> Path:
    """Download `target` from the first of `urls` that gives a file with this checksum.

    Bytes gather in `target.part`, where an interrupted download goes on later, also from another mirror. The name
    `target` appears only when the checksum was right, all at once. A file that has the name already stays as it is.

    Args:
        urls: http or https, tried in this order.
        target: the file to make; its directory is made too.
        sha256: of the whole file, in hexadecimal.
        progress: called with (bytes so far, bytes in all or None).
        timeout: seconds that a server may be silent.

    Raises:
        InputError: no address gave the file, each with its reason; or the directory cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    failures = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(target.parent):
            if target.exists():  # another process was quicker
                return target
            for url in urls:
                try:
                    _from(url, part, sha256, progress, timeout)
                except _Failed as failure:
                    failures.append(f"{url}: {failure}")
                else:
                    return part.replace(target)
    except OSError as error:  # those of the network became _Failed
        raise InputError(
            f"{target} cannot be written: {error.strerror or error}.",
            why=str(error),
            fix="check the directory's permissions and the free disk space, or choose another directory.",
        ) from error
    raise _no_mirror_left(target, failures)


def _no_mirror_left(target: Path, failures: Sequence[str]) -> InputError:
    return InputError(
        f"{target.name} could not be downloaded.",
        why="; ".join(failures),
        fix=f"check the network and run again (it goes on where it stopped), or put the file into {target.parent}.",
    )


def _from(url: str, part: Path, sha256: str, progress: Progress | None, timeout: float) -> None:
    """Fill `part` from one address, resuming after cuts; raises _Failed."""
    for attempt in range(1, ATTEMPTS + 1):
        had = part.stat().st_size if part.exists() else 0
        try:
            _append(url, part, progress, timeout)
        except _Cut:
            if attempt == ATTEMPTS or part.stat().st_size <= had:
                raise
            continue
        found = _digest(part)
        if found == sha256:
            return
        part.unlink()
        # The beginning may have come from another run or mirror; a file from one piece cannot get better.
        if had == 0:
            raise _Failed(f"wrong checksum, expected {sha256}, found {found}")
    raise _Failed("wrong checksum")


def _append(url: str, part: Path, progress: Progress | None, timeout: float) -> None:
    """One request: the bytes that `part` lacks, or all of them where the server does not serve parts."""
    had = part.stat().st_size if part.exists() else 0
    with _answer(url, had, timeout) as response:
        if response is None:  # 416: there is nothing after what we have
            return
        start = _start(response, had)
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        if (total or 0) > MAX_NBYTES:
            raise _Failed(f"{total} bytes are more than {MAX_NBYTES}")
        done = start
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            while chunk := _chunk(response, done):
                file.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
    if total is not None and done < total:
        raise _Cut(f"the connection was cut after {done} of {total} bytes")


@contextmanager
def _answer(url: str, had: int, timeout: float) -> Iterator[Any]:
    if urlsplit(url).scheme not in ("http", "https"):
        raise _Failed("not an http or https address")
    request = urllib.request.Request(url, headers={"User-Agent": "evener"})  # noqa: S310  # the scheme was checked
    if had:
        request.add_header("Range", f"bytes={had}-")
    try:
        response = urllib.request.urlopen(request, timeout=timeout)  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and had:
            yield None
            return
        raise _Failed(f"the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Failed(str(getattr(error, "reason", error)) or type(error).__name__) from error
    with response:
        yield response


def _start(response: Any, had: int) -> int:
    """Where the answer's first byte belongs: at `had` if the server honoured the range, else at 0."""
    if response.status != 206:
        return 0
    match = re.fullmatch(r"bytes (\d+)-\d+/(?:\d+|\*)", response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != had:
        raise _Failed("the server sent another part of the file than asked for")
    return had


def _chunk(response: Any, done: int) -> bytes:
    try:
        chunk: bytes = response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f"the connection broke after {done} bytes: {error or type(error).__name__}") from error
    if done + len(chunk) > MAX_NBYTES:
        raise _Failed(f"the server sent more than {MAX_NBYTES} bytes")
    return chunk


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """The tasks of a run begin together and want the same files: all but one wait here until they are there.

    The lock is on the directory itself, so no lock file stays behind, and it goes with its process.
    """
    try:
        import fcntl
    except ImportError:  # not on this platform; two downloads then only cost time, the last rename wins
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"waiting for another process that downloads into {directory}\n")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a network file system without locks: as above
            sys.stderr.write(f"{directory} cannot be locked; other processes may download the same files\n")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def shown(name: str) -> Iterator[Progress | None]:
    """Show a download: a progress bar for people in front of a terminal, one line for everybody else."""
    if not sys.stderr.isatty():
        sys.stderr.write(f"downloading {name}\n")
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress as Bar, TimeRemainingColumn, TransferSpeedColumn

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
