"""tcp://HOST:PORT: how it is written, where it leads, and who may listen on it."""

from __future__ import annotations

import errno
import ipaddress
import logging
import re
import socket

from evener.errors import BindError, ConfigError, SecurityError

PREFIX = "tcp://"
ADDRESS = re.compile(r"tcp://(?:([^:/*\[\]]+)|\[([^/*\[\]]+)\]):(\d{1,5})")


def parse(address: str) -> tuple[str, int] | None:
    """(host, port), or None for what is no address; an IPv6 host stands in brackets.

    >>> parse("tcp://[::1]:2222")
    ('::1', 2222)
    """
    match = ADDRESS.fullmatch(address)
    if match is None or int(match[3]) > 65535:
        return None
    return match[1] or match[2], int(match[3])


def resolve(host: str) -> str:
    """One IP address of a host, IPv4 if it has one. Raises OSError when the name does not resolve."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a name that no DNS can hold
        raise socket.gaierror(socket.EAI_NONAME, str(error)) from error
    found.sort(key=lambda info: info[0] != socket.AF_INET)
    return str(found[0][4][0])


#: Connections that the kernel keeps for us while we do something else.
BACKLOG = 1024


def bind(address: str, *, open_to_all: bool, insecure: bool) -> tuple[socket.socket, str]:
    """The server's socket, which listens and never blocks; and the address with its real port.

    Args:
        open_to_all: no keys are asked of those who connect.
        insecure: the user says that this is all right.

    Raises:
        ConfigError: it is no address to listen on.
        SecurityError: other machines would reach a server that asks for no keys.
        BindError: it is taken, or not of this machine.
    """
    parsed = parse(address)
    if parsed is None:
        raise ConfigError(
            f"cannot listen on '{address}'.",
            why="a server needs one host name or IP address, which its workers can reach, and a port up to 65535.",
            fix="write tcp://HOST:PORT; port 0 takes a free one.",
        )
    host, port = parsed
    try:
        ip = resolve(host)
        if open_to_all and not insecure:
            raise _exposed(host, ip)
        listening = _listening(ip, port)
    except OSError as error:
        raise _bind_error(host, port, error) from error
    bound = f"{PREFIX}[{ip}]" if ":" in ip else f"{PREFIX}{ip}"
    bound += f":{listening.getsockname()[1]}"
    if open_to_all:
        logging.getLogger(__name__).warning(
            "listening on %s without keys, as --insecure says: whoever reaches it can read and change the model.", bound
        )
    return listening, bound


def _listening(ip: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or the last run's links would keep the port
        listening.setblocking(False)
        listening.bind((ip, port))
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _exposed(host: str, ip: str) -> SecurityError:
    near = ipaddress.ip_address(ip.partition("%")[0]).is_loopback
    return SecurityError(
        f"refusing to listen on {host if host == ip else f'{host} ({ip})'} without keys.",
        why=f"other {'users of this machine' if near else 'machines'} reach this address: whoever connects could read "
        "and change the model.",
        fix="run `evener keys new DIR` and give each task its keys, or say --insecure on a network you trust.",
    )


def _bind_error(host: str, port: int, error: OSError) -> BindError:
    if error.errno == errno.EADDRINUSE:
        return BindError(
            f"{host}:{port} is taken.", why="another process listens there.", fix="choose another port, or stop it."
        )
    if isinstance(error, socket.gaierror) or error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):
        return BindError(
            f"{host} is not an address of this machine.",
            why=str(error),
            fix="use 127.0.0.1, or an address that `ip address` lists here.",
        )
    return BindError(f"cannot listen on {host}:{port}.", why=str(error), fix="choose another port.")
