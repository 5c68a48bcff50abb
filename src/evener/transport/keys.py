"""The keys of a cluster: one Ed25519 pair per task, in files that only their owner can read.

A directory holds NAME.public (for everyone) and NAME.secret (0600) of each task, NAME being "ps-0" or "worker-3". Both
are PEM: the public half as a certificate that nobody but itself signs, since that is what TLS carries, the secret as
PKCS #8. A task needs all public files and the one secret that is its own: whoever connects proves a secret, the public
half of it tells which task that is. Secrets live in these files and in `Keys`, nowhere else: not in the environment,
not on a command line, not in a log.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import ssl
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from evener.errors import ConfigError, SecurityError

#: Names of tasks, as they stand in file names. No other file of a directory of keys is looked at.
NAME = re.compile(r"[a-z]+(-(0|[1-9]\d{0,5}))?")
PUBLIC, SECRET = ".public", ".secret"
MAX_FILE = 4096
#: A key of evener up to 0.1: one line of Z85, for ZeroMQ's CURVE.
OLD = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
#: Certificates end in no test and in no year: a key is valid as long as its file lies in the directory.
SINCE, UNTIL = datetime.datetime(2000, 1, 1), datetime.datetime(9999, 12, 31)


@dataclass(frozen=True, slots=True)
class Keys:
    """What one task holds: its own secret, and the public keys of all."""

    name: str
    directory: Path  # where they were read, for error messages
    secret: bytes = field(repr=False)  # PEM
    public: Mapping[str, bytes]  # name of a task -> its certificate, DER


def names(ps: int, workers: int) -> list[str]:
    """The tasks of a cluster as keys name them, and the client that gives jobs to its standing servers.

    >>> names(1, 2)
    ['ps-0', 'worker-0', 'worker-1', 'client']
    """
    if ps < 1 or workers < 1:
        raise ConfigError(
            f"keys for {ps} ps and {workers} worker tasks.", why="links with keys join at least one of each."
        )
    tasks = [f"{job}-{index}" for job, count in (("ps", ps), ("worker", workers)) for index in range(count)]
    return [*tasks, "client"]


def named(task: str) -> str:
    """The name of a task in keys: "worker:1" and "worker-1" are both "worker-1"."""
    name = task.replace(":", "-")
    if not NAME.fullmatch(name):
        raise ConfigError(f"{task!r} is no name of a task.", fix="write ps-0 or worker-3.")
    return name


def said(name: str) -> str:
    """The name of a task as people write it: "worker:1"."""
    return name.replace("-", ":")


def new(directory: Path | str, names: Iterable[str]) -> None:
    """Make a pair of keys for each task, all of them or none; the directory is made if it is missing.

    Raises:
        ConfigError: a name that no task can have, or one twice.
        SecurityError: a key of one of the names exists already, or the directory cannot be written.
    """
    directory, wanted = Path(directory), [named(name) for name in names]
    if len(set(wanted)) < len(wanted):
        raise ConfigError(f"one name twice among {', '.join(wanted)}.")
    made: list[Path] = []
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        for name in wanted:
            public, secret = pair(name)
            for suffix, key, mode in ((SECRET, secret, 0o600), (PUBLIC, public, 0o644)):
                _write(directory / (name + suffix), key, mode, made)
    except BaseException as error:
        for path in made:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _not_written(directory, error) from error
        raise


def pair(name: str) -> tuple[bytes, bytes]:
    """A new pair of keys for one task: certificate and secret, as PEM."""
    secret = Ed25519PrivateKey.generate()
    title = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"evener {name}")])
    builder = x509.CertificateBuilder(title, title, secret.public_key(), x509.random_serial_number(), SINCE, UNTIL)
    certificate = builder.sign(secret, None)
    private = secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), private


def pem(certificate: bytes) -> str:
    """A certificate as text, of its DER."""
    return ssl.DER_cert_to_PEM_cert(certificate)


def _write(path: Path, key: bytes, mode: int, made: list[Path]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    made.append(path)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, mode)  # whatever the umask says
        file.write(key)
        file.flush()
        os.fsync(fd)


def _not_written(directory: Path, error: OSError) -> SecurityError:
    if isinstance(error, FileExistsError):
        return SecurityError(
            f"{error.filename} exists already.",
            why="tasks that hold the old keys would be shut out of their own cluster.",
            fix="choose another directory, or remove the old keys first.",
        )
    return SecurityError(f"cannot write keys to {directory}.", why=str(error), fix="choose a directory of your own.")


def load(directory: Path | str, task: str) -> Keys:
    """The keys of one task ("worker-1"), checked.

    Raises:
        SecurityError: a file is missing or damaged, or others could read the secret or put keys of theirs here.
    """
    directory, name = Path(directory), named(task)
    _check_unwritable(directory)
    public: dict[str, bytes] = {}
    owners: dict[bytes, str] = {}
    for path in sorted(directory.glob(f"*{PUBLIC}")):
        if not NAME.fullmatch(path.stem):
            continue
        _check_unwritable(path)
        public[path.stem], key = _certificate(path)
        if (other := owners.setdefault(key, path.stem)) != path.stem:
            raise SecurityError(
                f"{other} and {path.stem} have the same public key in {directory}.",
                why="a key tells which task its owner is.",
                fix="make all keys anew with `evener keys new`.",
            )
    path = directory / (name + SECRET)
    secret = _read(path)
    if owners.get(_public_half(path, secret)) != name:
        raise SecurityError(
            f"{path} does not belong to {name}{PUBLIC} beside it.",
            why="the others know this task by that public key.",
            fix="copy both files from the directory that `evener keys new` made.",
        )
    return Keys(name, directory, secret, public)


def _certificate(path: Path) -> tuple[bytes, bytes]:
    """(DER, public key) in one file."""
    text = _read(path)
    with _parsing(path):
        certificate = x509.load_pem_x509_certificate(text)
        key = certificate.public_key()
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError
        return certificate.public_bytes(Encoding.DER), key.public_bytes_raw()


def _public_half(path: Path, secret: bytes) -> bytes:
    with _parsing(path):
        key = load_pem_private_key(secret, None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError
        return key.public_key().public_bytes_raw()


@contextlib.contextmanager
def _parsing(path: Path) -> Iterator[None]:
    """Turns every way in which a key cannot be read into one error, whose words quote nothing of it."""
    try:
        yield
    except Exception:
        raise SecurityError(
            f"{path} is no key.",
            why="a public key is an Ed25519 certificate in PEM, a secret one its private key.",
            fix="copy it again from the directory that `evener keys new` made.",
        ) from None


def _read(path: Path) -> bytes:
    """The key in one file; looked at through one descriptor, so that what is checked is what is read."""
    with _reporting(path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise SecurityError(f"{path} is no file.")
            if path.suffix == SECRET and status.st_mode & 0o077:
                raise SecurityError(
                    f"key file {path} has mode {stat.S_IMODE(status.st_mode):04o}.",
                    why="others on this machine can read it, and then be this task.",
                    fix=f"run chmod 600 {path}",
                )
            text = file.read(MAX_FILE)
    if OLD.fullmatch(text.strip()):
        raise SecurityError(
            f"{path} is a key of an older evener.",
            why="it was made for ZeroMQ (CURVE), which no longer carries the links between hosts.",
            fix="make new keys with `evener keys new DIR` and give each task its own.",
        )
    return text


def _check_unwritable(path: Path) -> None:
    with _reporting(path):
        mode = path.stat().st_mode
    if mode & stat.S_IWOTH:
        raise SecurityError(
            f"{path} has mode {stat.S_IMODE(mode):04o}.",
            why="anyone on this machine could put a key of his own there and join the cluster.",
            fix=f"run chmod o-w {path}, after a look at what it holds.",
        )


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Turns what the system says about a file into a SecurityError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise SecurityError(
            f"there is no {path}.",
            why="a task needs the public keys of all tasks and its own secret key.",
            fix="make keys with `evener keys new DIR`, or copy them to this machine.",
        ) from error
    except OSError as error:
        raise SecurityError(f"cannot read {path}.", why=str(error)) from error
