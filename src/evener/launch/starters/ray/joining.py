"""A connection to a Ray cluster, or a Ray of this machine where there is none."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import ray
from ray._private import ray_constants, services, worker
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled: mypy knows of no name in it
from ray.exceptions import AuthenticationError, RpcError

from evener.errors import AuthError, SecurityError, Unavailable
from evener.launch.starters.ray.nodes import addresses

#: Where actors are named, whatever program has made them.
NAMESPACE = "evener"
LOOPBACK = "127.0.0.1"
#: Seconds for a cluster to take a connection. Ray itself tries for five minutes, and does not say why.
ANSWER = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RayConnection:
    """This process is connected to a cluster."""

    own: bool  # a Ray that was started for this run
    where: str  # in words
    leave: Callable[[], None]


def joined(address: str, runtime_env: dict[str, Any], cpus: int) -> RayConnection:
    """Connect this process: to `address`, else to the Ray that runs here, else to one that is started for it.

    Args:
        address: as `RayAsked.ray_address`. "local", Ray's own word: one is started although others run here.
        runtime_env: what the nodes get; not those of a Ray of our own, who have it.
        cpus: that a Ray of our own says it has: as many as its tasks ask for; 0: there may be no such one.

    Raises:
        Unavailable: nothing answers at this address.
        AuthError: the cluster wants a token that this user has not.
        SecurityError: a Ray of our own would listen beyond this machine.
    """
    if ray.is_initialized():  # by the program that calls us, which goes on to use it
        return RayConnection(False, "the Ray that this program uses", lambda: None)
    address = address or services.get_ray_address_from_environment("", None)  # of RAY_ADDRESS alone
    try:
        found = _found(address)
        if found == "local":
            return _own(cpus)
        _init(found, loopback=found.startswith("127."), runtime_env=runtime_env)
    except ConnectionError as error:
        if not address and cpus:
            return _own(cpus)
        where = f"no Ray cluster answers at {address}" if address else "no Ray runs on this machine"
        fix = "start one by `ray start --head`" + (
            ", or leave --ray-address out: one of this machine is started" * bool(cpus)
        )
        raise Unavailable(f"{where}.", why=_line(error), fix=f"{fix}.") from error
    except (RuntimeError, ValueError) as error:  # another version, a wrong token, a directory that is too large
        raise Unavailable(f"the Ray cluster at {address or 'auto'} refuses this run.", why=_line(error)) from error
    return RayConnection(False, f"the Ray cluster at {address or ray.get_runtime_context().gcs_address}", ray.shutdown)


def _found(address: str) -> str:
    """The address of the Ray that runs here, in place of none. ConnectionError: nothing listens there."""
    if address in ("", "auto"):
        address = str(services.get_ray_address_from_environment("auto", None))
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname and parts.port:  # a Ray that was killed leaves its address behind
        try:
            socket.create_connection((parts.hostname, parts.port), ANSWER).close()
        except OSError as error:
            raise ConnectionError(f"{address}: {error}") from error
        if "://" not in address:
            _prove(address)
    return address


def _prove(address: str) -> None:
    """Use this user's token, if the cluster wants one: since Ray has made one for him, `ray start` asks for it, and
    yet none of Ray's programs gives it unless RAY_AUTH_MODE is set."""
    try:
        GcsClient(address)
    except AuthenticationError:
        try:
            if token_is_used():
                GcsClient(address)
                return
        except AuthenticationError:
            pass
        raise AuthError(
            f"the Ray cluster at {address} wants its token.",
            why="RAY_AUTH_TOKEN and ~/.ray/auth_token hold none, or that of another cluster.",
            fix="get it where the cluster was started, by `ray get-auth-token`, and set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN to it.",
        ) from None
    except RpcError as error:
        raise ConnectionError(f"{address} does not speak as Ray does: {error}") from error


def token_is_used() -> bool:
    """Give this user's token from now on. False: there is none, or this Ray knows of none without RAY_AUTH_MODE."""
    from ray._private.authentication import authentication_token_setup as tokens

    enable = getattr(tokens, "maybe_enable_token_auth_if_token_available", lambda **_: False)  # not before Ray 2.60
    return bool(enable(warn_if_disabled=False))


def _own(cpus: int) -> RayConnection:
    """A Ray that listens on loopback alone, and to those who have this user's token (its default for such a one)."""
    if not cpus:
        raise Unavailable(
            "a Ray of this run alone ends with the process that started it.",
            why="this run is to be found again on its cluster.",
            fix="start one by `ray start --head`, and leave --ray-address local out.",
        )
    _init("local", loopback=True, num_cpus=cpus, include_dashboard=False, _node_ip_address=LOOPBACK)
    if (found := addresses()) != {LOOPBACK}:
        ray.shutdown()
        raise SecurityError(
            f"the Ray that was started listens at {', '.join(sorted(found))}.",
            why=f"ray {ray.__version__} does not stay on loopback as it should.",
            fix="start one by `ray start --head`, as its documentation advises.",
        )
    return RayConnection(True, "a Ray of this machine, started for this run", ray.shutdown)


def _init(address: str, *, loopback: bool, **more: Any) -> None:
    """`loopback`: the cluster is of this machine alone, and its addresses are not replaced by outer ones."""
    # What Ray asks on systems where it takes no other machines in.
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, not loopback
    # Of a node that is lost Ray prints the last twenty lines of its log, into whatever this process prints.
    worker.print_to_stdstream = _to_log
    try:
        ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **more)
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def _to_log(data: Any, ignore_prefix: bool) -> None:
    log.info("Ray: %s", "\n".join(data["lines"]))
