"""Names, addresses and ports of the nodes of a job."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
from contextlib import suppress

from minetorch_launch.errors import JoinError
from minetorch_launch.validators import Endpoint

_CONNECT_SECONDS = 5.0
_SIOCGIFADDR = 0x8915


def is_this_machine(address: str) -> bool:
    """Whether ``address`` is this machine's own: only then can a socket be bound to it."""
    with suppress(OSError), socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return True
    return False


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach ``address``."""
    return address == "::1" or address.startswith("127.")


def address_towards(address: str, port: int) -> str:
    """This machine's own address, as the machine at ``address`` sees it. Sends nothing.

    Raises:
        JoinError: there is no route to it.
    """
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise JoinError(
            f"{socket.gethostname()} has no route to {address} ({error.strerror}): check this node's network and "
            "--rdzv-endpoint"
        ) from None


def interface_of(address: str) -> str | None:
    """Name of the network interface that has the IPv4 ``address``; None if there is none."""
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
        JoinError: the port is in use, or not permitted.
    """
    server = socket.socket(_family(address), socket.SOCK_STREAM)
    try:
        # Otherwise a restarted launcher has to wait a minute until the connections of the last one time out.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(4096)
    except OSError as error:
        server.close()
        raise JoinError(
            f"{socket.gethostname()} cannot open port {port} at {address} for the rendezvous ({error.strerror}): "
            f"another job may use it (see `ss -ltnp 'sport = :{port}'`). Give all nodes another port: "
            "--rdzv-endpoint HOST:PORT"
        ) from None
    return server


async def reach(address: str, port: int, seconds: float = _CONNECT_SECONDS) -> str | None:
    """Try to connect; None if a process listens there, else the reason why it cannot be reached."""
    probe = socket.socket(_family(address), socket.SOCK_STREAM)
    probe.setblocking(False)
    with probe:
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(probe, (address, port)), seconds)
        except asyncio.TimeoutError:
            return f"no answer from {address} within {seconds:g} s"
        except OSError as error:
            return f"{os.strerror(error.errno) if error.errno else error} by {address}"
    return None


def what_to_check(problem: str, endpoint: Endpoint) -> str:
    """Advice for a user whose node cannot reach ``endpoint``."""
    if "refused" in problem:
        return f"is minetorch-launch running on {endpoint.host}, with the same --rdzv-endpoint and --nodes?"
    if problem.startswith("cannot find"):
        return "check the spelling, /etc/hosts and DNS on this node, or give --rdzv-endpoint an IP address"
    return f"is {endpoint.host} up, and does a firewall let TCP port {endpoint.port} through?"


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
