"""tcp://HOST:PORT: how it is written, where it leads, and who may listen on it."""

from __future__ import annotations

import errno
import ipaddress
import logging
import re
import socket

import zmq

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


def route(connection: zmq.Socket[bytes], ip: str, port: int) -> str:
    """The endpoint as ZeroMQ takes it; lets the socket speak IPv6 if it must."""
    if ":" not in ip:
        return f"{PREFIX}{ip}:{port}"
    connection.setsockopt(zmq.IPV6, 1)
    return f"{PREFIX}[{ip}]:{port}"


def bind(listening: zmq.Socket[bytes], address: str, *, open_to_all: bool, insecure: bool) -> str:
    """Bind the server's socket; gives the address with its real port.

    Args:
        open_to_all: no keys are asked of those who connect.
        insecure: the user says that this is all right beyond this machine, too.

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
        exposed = open_to_all and not ipaddress.ip_address(ip.partition("%")[0]).is_loopback
        if exposed and not insecure:
            raise _exposed(host, ip)
        listening.bind(route(listening, ip, port))
    except (OSError, zmq.ZMQError) as error:
        raise _bind_error(host, port, error) from error
    bound = str(listening.get_string(zmq.LAST_ENDPOINT))
    if exposed:
        logging.getLogger(__name__).warning(
            "listening on %s without keys, as --insecure says: whoever reaches it can read and change the model.", bound
        )
    return bound


def _exposed(host: str, ip: str) -> SecurityError:
    return SecurityError(
        f"refusing to listen on {host if host == ip else f'{host} ({ip})'} without keys.",
        why="other machines reach this address: whoever connects could read and change the model.",
        fix="run `evener keys new DIR` and give each task its keys, or say --insecure on a network you trust.",
    )


def _bind_error(host: str, port: int, error: OSError | zmq.ZMQError) -> BindError:
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
