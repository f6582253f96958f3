"""Names, ports and links of this node, and the links and clocks between the nodes."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minetorch_launch import joining
from minetorch_launch.doctor.finding import Finding, failed, passed, warned
from minetorch_launch.errors import JoinError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minetorch_launch.doctor.rehearsal import Node

__all__ = [
    "OwnName",
    "assess_clocks",
    "assess_links",
    "assess_own_name",
    "assess_port_range",
    "examine_rendezvous",
    "knows_interface",
    "read_own_name",
    "read_port_range",
]

_SKEW_WARN, _SKEW_FAIL = 0.1, 300.0
_PORTS_PER_PAIR = 4
_PORTS_SPARE = 1000


@dataclass(frozen=True)
class OwnName:
    """This machine's name, and the addresses that it finds under it."""

    host: str
    addresses: tuple[str, ...]
    error: str = ""
    """Why there are none."""


def read_own_name() -> OwnName:
    """Ask as gloo does: through the system's resolver."""
    host = socket.gethostname()
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return OwnName(host, (), getattr(error, "strerror", None) or str(error))
    return OwnName(host, tuple(dict.fromkeys(str(entry[4][0]) for entry in found)))


def assess_own_name(own: OwnName, many_nodes: bool, interface_known: bool) -> Finding:
    """Left to itself, gloo gives the other nodes the address that this node finds under its own name.

    Args:
        own: the name.
        many_nodes: whether others are to reach this node.
        interface_known: whether gloo is told which network interface to use instead, by the launcher or the user.
    """
    check = "host name"
    if not own.addresses:
        return warned(
            check,
            f"{own.host} has no address ({own.error}): libraries that look themselves up wait or fail",
            f"add '127.0.1.1 {own.host}', or better this node's real address, to /etc/hosts",
        )
    found = f"{own.host} is {', '.join(own.addresses)}"
    if many_nodes and all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in own.addresses):
        if interface_known:
            return passed(check, f"{found} to itself; gloo is told which network interface to use instead")
        return warned(
            check,
            f"{found}: where the other nodes find only themselves",
            f"give {own.host} its real address in /etc/hosts (Debian puts 127.0.1.1 there), or set GLOO_SOCKET_IFNAME "
            "to the network interface",
        )
    return passed(check, found)


def knows_interface(endpoint: joining.Endpoint, environ: Mapping[str, str]) -> bool:
    """Whether the launcher will name to gloo the interface by which this node reaches ``endpoint``, or the user has."""
    if "GLOO_SOCKET_IFNAME" in environ:
        return True
    try:
        towards = joining.address_towards(joining.resolve(endpoint)[0], endpoint.port)
    except JoinError:  # the check of the rendezvous says so
        return False
    return joining.interface_of(towards) is not None


def examine_rendezvous(endpoint: joining.Endpoint, node_rank: int | None, ephemeral: tuple[int, int]) -> Finding:
    """Whether the nodes can meet at ``endpoint``: open its port on its own node, reach it from another."""
    check = "rendezvous"
    try:
        addresses = joining.resolve(endpoint)
    except JoinError as error:
        return failed(check, *_parted(error))
    if joining.is_this_machine(addresses) and not node_rank:
        try:
            joining.listen(addresses[0], endpoint.port).close()
        except JoinError as error:
            # Without a number this may be a second node on this machine, and the port the first one's.
            return (failed if node_rank == 0 else warned)(check, *_parted(error))
        found = f"{endpoint} is this machine, and its port is free"
    else:
        problem = joining.reach_now(addresses[0], endpoint.port)
        if problem is not None and "refused" not in problem:
            return failed(
                check,
                f"{endpoint} cannot be reached from here: {problem}",
                f"check that {endpoint.host} is up, and that a firewall lets TCP port {endpoint.port} through",
            )
        found = f"{endpoint} answers" + ("" if problem is None else "; nobody listens there yet")
    if ephemeral[0] <= endpoint.port <= ephemeral[1]:
        return warned(
            check,
            f"{found}; but an outgoing connection may take that port any time",
            f"give all nodes one outside of {ephemeral[0]}-{ephemeral[1]}: --rdzv {endpoint.host}:"
            f"{joining.DEFAULT_PORT if not ephemeral[0] <= joining.DEFAULT_PORT <= ephemeral[1] else ephemeral[0] - 1}",
        )
    return passed(check, found)


def read_port_range(file: Path = Path("/proc/sys/net/ipv4/ip_local_port_range")) -> tuple[int, int]:
    """The first and last port of those that the system gives out."""
    first, last = file.read_text().split()
    return int(first), int(last)


def assess_port_range(ephemeral: tuple[int, int], nproc: int, nodes: int) -> Finding:
    """Each worker has connections to every other, and each takes a port."""
    check, count = "local ports", ephemeral[1] - ephemeral[0] + 1
    need = _PORTS_SPARE + nproc * nproc * nodes * _PORTS_PER_PAIR
    found = f"{count} ({ephemeral[0]}-{ephemeral[1]})"
    if count >= need:
        return passed(check, found, count=count)
    return warned(
        check,
        f"{found}: {nproc} workers on each of {nodes} nodes may need {need}",
        "type sysctl -w net.ipv4.ip_local_port_range='32768 60999' (as root)",
        count=count,
        need=need,
    )


def assess_links(nodes: Sequence[Node]) -> Finding:
    """Every node to every other, at an ephemeral port as gloo and NCCL use them."""
    check = "links"
    broken = [
        f"{node.host} cannot connect to {nodes[link.to].host} at {nodes[link.to].address} ({link.error})"
        for node in nodes
        for link in node.links
        if link.error
    ]
    addresses = ", ".join(f"{node.host} {node.address} ({node.interface or 'unknown interface'})" for node in nodes)
    if broken:
        return failed(
            check,
            f"{'; '.join(broken)}. Nodes: {addresses}",
            "open all TCP ports between the nodes (gloo and NCCL take any); where an interface above is the wrong one, "
            "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME",
        )
    slowest = max(link.round_trip for node in nodes for link in node.links)
    return passed(
        check,
        f"each of {len(nodes)} nodes reaches every other, {slowest * 1e6:.0f} µs there and back at most: {addresses}",
        slowest_round_trip_seconds=slowest,
    )


def assess_clocks(nodes: Sequence[Node]) -> Finding | None:
    """How far the clocks are apart, half of a round trip uncertain; None where no two nodes could be compared."""
    check = "clocks"
    offsets = [(abs(link.offset), node, nodes[link.to]) for node in nodes for link in node.links if not link.error]
    if not offsets:
        return None
    skew, one, other = max(offsets, key=lambda entry: entry[0])
    found = f"{skew * 1000:.1f} ms apart at most ({one.host} and {other.host})"
    if skew <= _SKEW_WARN:
        return passed(check, found, skew_seconds=skew)
    return (failed if skew > _SKEW_FAIL else warned)(
        check,
        f"{found}: log lines of different nodes, and which rank failed first, come out of order; S3 refuses requests "
        "from a clock that is 15 minutes off",
        "set the clocks by NTP on every node: systemctl enable --now chronyd (or systemd-timesyncd)",
        skew_seconds=skew,
    )


def _parted(error: JoinError) -> tuple[str, str]:
    """What happened, and what to do: the two halves of an error's sentence."""
    found, _, advice = str(error).rpartition("): ")
    return (f"{found})", advice) if found else (str(error), "see the message")
