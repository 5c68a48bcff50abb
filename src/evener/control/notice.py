"""A machine that tells beforehand that it goes away: a file that appears, or a URL that answers, as spot machines have.

    AWS   http://169.254.169.254/latest/meta-data/spot/instance-action                  404 until there is a notice
    GCP   http://metadata.google.internal/computeMetadata/v1/instance/preempted         FALSE, then TRUE

What the notice says is compared and never shown: it is of the machine's owner, and whoever named the place may not be.
"""

from __future__ import annotations

import hashlib
import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

from evener.files import content

#: Seconds between two looks, and that a URL may take to answer.
EVERY, PATIENCE = 1.0, 1.0
#: Bytes of a notice that count.
MOST = 1 << 16
#: What a URL says while there is no notice (GCP).
NONE = (b"FALSE", b"NONE")
#: Where AWS gives the token without which newer machines answer nothing, and how it is asked for and shown.
TOKEN, ASKED, SHOWN = "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token"

#: What is there now: "" if there is no notice; None if nobody says.
Read = Callable[[], str | None]


def is_url(place: str) -> bool:
    """Whether a notice is asked for there, and else a file."""
    return place.startswith(("http://", "https://"))


def reader(place: str) -> Read:
    """Reads the notice of a file or a URL: a digest of it."""
    return Asked(place).read if is_url(place) else lambda: _of_file(Path(place))


def _of_file(path: Path) -> str | None:
    """Any file is a notice, also an empty one, and one that may not be read."""
    try:
        return digest(content(path, MOST))
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"errno {error.errno}" if path.exists() else None


def digest(notice: bytes) -> str:
    return hashlib.sha256(notice).hexdigest()


class Asked:
    """A URL that is asked again and again, without any proxy: these addresses are of this machine alone."""

    def __init__(self, url: str, opener: OpenerDirector | None = None) -> None:
        self._url, self._opener = url, opener or build_opener(ProxyHandler({}))
        self._token = ""

    def read(self) -> str | None:
        try:
            return self._read()
        except HTTPError as error:
            if error.code != http.client.UNAUTHORIZED:
                return "" if error.code == http.client.NOT_FOUND else None
        except (OSError, http.client.HTTPException):
            return None
        try:  # as newer machines of AWS want it
            self._token = self._new_token()
            return self._read()
        except (OSError, http.client.HTTPException):
            return "" if self._token else None

    def _read(self) -> str:
        headers = {"Metadata-Flavor": "Google"} | ({SHOWN: self._token} if self._token else {})
        asked = Request(self._url, headers=headers)  # noqa: S310 - http or https, see `is_url`
        with self._opener.open(asked, timeout=PATIENCE) as answer:
            if answer.status != http.client.OK:
                return ""
            body: bytes = answer.read(MOST)
        return "" if body.strip().upper() in NONE else digest(body)

    def _new_token(self) -> str:
        place = urlsplit(self._url)._replace(path=TOKEN, query="").geturl()
        asked = Request(place, method="PUT", headers={ASKED: "21600"})  # noqa: S310 - as above
        with self._opener.open(asked, timeout=PATIENCE) as answer:
            return str(answer.read(1024), "ascii", "replace").strip()


class Notices:
    """Which notice is new. One that was there at the start is of a machine that did not go away then.

    >>> said = iter(["old", "old", "", "new", "new"])
    >>> notices = Notices(lambda: next(said))
    >>> notices.old, [notices.is_new() for _ in range(4)]
    (True, [False, False, True, False])
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._known = read() or ""
        self.old = bool(self._known)

    def is_new(self) -> bool:
        """Whether there is a notice that was not there before. Silence changes nothing."""
        now = self._read()
        if now is None or now == self._known:
            return False
        self._known = now
        return bool(now)


def watch(notices: Notices, seen: Callable[[], object], over: Callable[[float], bool]) -> None:
    """Look until there is a new notice, or `over` has waited so many seconds and says that nobody asks any more."""
    while not over(EVERY):
        if notices.is_new():
            seen()
            return


@contextmanager
def noticed(place: str, seen: Callable[[str], object], say: Callable[[str], object]) -> Iterator[None]:
    """In this block a thread looks for a notice each second.

    Args:
        place: a path or a URL; empty: nobody looks.
        seen: called once, by that thread, with what to say of it; never after the block.
        say: gets a line where there is one already that does not count.
    """
    if not place or threading.current_thread() is not threading.main_thread():
        yield  # `seen` ends in a signal, and those are the main thread's
        return
    over, turn = threading.Event(), threading.Lock()
    # What comes from now on is new. A URL may be slow, or its host unknown here: nobody waits for its first answer.
    first = None if is_url(place) else Notices(reader(place))

    def once() -> None:
        with turn:
            if not over.is_set():
                seen(f"preemption notice at {place}")

    def look() -> None:
        notices = first or Notices(reader(place))
        if notices.old:
            say(f"the preemption notice at {place} was there before this task: it is ignored until it changes")
        watch(notices, once, over.wait)

    threading.Thread(target=look, name="notice", daemon=True).start()
    try:
        yield
    finally:
        with turn:
            over.set()
