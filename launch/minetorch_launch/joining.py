"""How the machines of a job find each other: names, addresses, ports, and what to say when they do not.

Standard library only; what they then agree on is the engine's business.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minetorch_launch.errors import JoinError, UsageError, in_brief

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "DEFAULT_PORT",
    "Endpoint",
    "address_towards",
    "interface_of",
    "is_this_machine",
    "keep_alive",
    "listen",
    "parse_endpoint",
    "reach",
    "reach_now",
    "resolve",
]

DEFAULT_PORT = 29400

_CONNECT_SECONDS = 5.0
_SAY_EVERY_SECONDS = 30.0
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Endpoint:
    """A place to meet."""

    host: str
    """A name, or an IPv4 or IPv6 address without brackets."""

    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """``HOST``, ``HOST:PORT``, ``[IPV6]`` or ``[IPV6]:PORT``; without a port it is `DEFAULT_PORT`.

    Raises:
        UsageError: anything else.
    """
    bracketed = text.startswith("[")
    host, closed, rest = text[1:].partition("]") if bracketed else (text, "", "")
    if not bracketed:
        host, colon, port = text.rpartition(":") if text.count(":") == 1 else (text, "", "")
        rest = colon + port
    number = rest.removeprefix(":") or str(DEFAULT_PORT)
    well_formed = host and not host.isspace() and (closed or not bracketed) and (not rest or rest[0] == ":")
    is_port = number.isdecimal() and len(number) < 10 and 0 < int(number) < 65536
    if not well_formed or rest == ":" or not is_port:
        raise UsageError(f"--rdzv {in_brief(text)} is no place to meet: type HOST or HOST:PORT (port 1 to 65535)")
    return Endpoint(host, int(number))


def resolve(endpoint: Endpoint) -> list[str]:
    """The addresses of ``endpoint``'s host, in the system's order of preference.

    Raises:
        JoinError: the name has none.
    """
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise JoinError(
            f"{socket.gethostname()} cannot find the rendezvous host {endpoint.host!r} (looking up its address: "
            f"{getattr(error, 'strerror', None) or error}): check the spelling, /etc/hosts and DNS on this node, "
            "or give --rdzv an IP address"
        ) from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_this_machine(addresses: list[str]) -> bool:
    """Whether one of ``addresses`` is this machine's own: only then can a socket be bound to it."""
    for address in addresses:
        with suppress(OSError), socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
            return True
    return False


def address_towards(address: str, port: int) -> str:
    """This machine's own address as the one at ``address`` sees it. Sends nothing.

    Raises:
        JoinError: there is no route to it.
    """
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise JoinError(
            f"{socket.gethostname()} has no route to {address} ({error.strerror}): check this node's network and --rdzv"
        ) from None


def interface_of(address: str) -> str | None:
    """Name of the network interface that has the IPv4 ``address``; None if that cannot be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name[:15].encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def listen(address: str, port: int) -> socket.socket:
    """A listening socket at this machine's ``address``; port 0 takes a free one.

    Raises:
        JoinError: the port is taken, or not ours to take.
    """
    server = socket.socket(_family(address), socket.SOCK_STREAM)
    try:
        # Without it a restarted launcher would wait a minute for its forerunner's connections to be forgotten.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(4096)
    except OSError as error:
        server.close()
        raise JoinError(
            f"{socket.gethostname()} cannot open port {port} at {address} for the rendezvous ({error.strerror}): "
            f"another job may be using it (`ss -ltnp 'sport = :{port}'`); give all nodes another one: --rdzv HOST:PORT"
        ) from None
    return server


def reach(
    endpoint: Endpoint,
    addresses: list[str],
    seconds: float,
    *,
    say: Callable[[str], None],
    check: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Wait until somebody listens at ``endpoint``; the address at which.

    Args:
        endpoint: for the words.
        addresses: where to try, in turn.
        seconds: how long.
        say: told now and then that this is still waiting.
        check: called often; may raise to give up.
        clock: seconds.

    Raises:
        JoinError: nobody did.
    """
    began = said = clock()
    while True:
        for address in addresses:
            check()
            problem = reach_now(address, endpoint.port)
            if problem is None:
                return address
        waited = clock() - began
        where = f"{endpoint} ({', '.join(addresses)})"
        if waited > seconds:
            raise JoinError(
                f"{socket.gethostname()} could not connect to the rendezvous at {where} within {seconds:g} s "
                f"(last: {problem}): {_what_to_check(problem, endpoint)}"
            )
        if clock() - said > _SAY_EVERY_SECONDS:
            said = clock()
            say(f"minetorch-launch: waiting for the rendezvous at {where} for {waited:.0f} s: {problem}")
        time.sleep(min(0.1 + waited / 20, 1.0))


def reach_now(address: str, port: int, seconds: float = _CONNECT_SECONDS) -> str | None:
    """None if somebody listens there, else why nobody can be reached in so many seconds."""
    try:
        with socket.create_connection((address, port), timeout=seconds):
            return None
    except TimeoutError:
        return f"no answer from {address} in {seconds:g} s"
    except OSError as error:
        return f"{error.strerror or error} by {address}" if error.errno else str(error)


def keep_alive(address: str, port: int, seconds: int, answer_s: int) -> None:
    """Have the kernel give up on this process's connections to ``address``:``port`` when the peer is silent so long.

    The store's client waits for its replies without a limit: after a cut link, for ever, and as long as its host is
    stopped, whose kernel goes on to acknowledge what comes. It does not show its socket, so that is looked for among
    the process's own.

    Args:
        address: the peer's.
        port: the peer's.
        seconds: for which its machine may be silent.
        answer_s: for which it itself may leave a question unanswered.
    """
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            _limit_silence(int(entry.name), address, port, seconds, answer_s)


def _limit_silence(fd: int, address: str, port: int, seconds: int, answer_s: int) -> None:
    if not str(Path(f"/proc/self/fd/{fd}").readlink()).startswith("socket:"):
        return
    with socket.socket(fileno=os.dup(fd)) as connection:
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return
        peer = connection.getpeername()
        if peer[1] != port or str(peer[0]).removeprefix("::ffff:") != address:
            return
        for option, value in (
            (socket.TCP_KEEPIDLE, max(1, seconds // 3)),
            (socket.TCP_KEEPINTVL, max(1, seconds // 3)),
            (socket.TCP_KEEPCNT, 2),
            (socket.TCP_USER_TIMEOUT, seconds * 1000),
        ):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", answer_s, 0))


def _what_to_check(problem: str | None, endpoint: Endpoint) -> str:
    if problem and "refused" in problem:
        return f"is minetorch-launch running on {endpoint.host}, with the same --rdzv and --nodes?"
    return f"is {endpoint.host} up, and does a firewall let TCP port {endpoint.port} through?"


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
