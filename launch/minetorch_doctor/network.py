"""Whether this node can use the rendezvous endpoint, and whether the nodes can connect to one another."""

from __future__ import annotations

import socket

from minetorch_doctor.result import Result
from minetorch_doctor.selftest import WorkerReport
from minetorch_launch.errors import JoinError
from minetorch_launch.rendezvous.endpoints import is_this_machine, listen
from minetorch_launch.validators import Endpoint

_CONNECT_SECONDS = 5.0


def check_rendezvous(endpoint: Endpoint, node_rank: int | None) -> Result:
    """Open the port on the rendezvous host itself, connect to it from every other node."""
    check, host, port = "rendezvous", endpoint.host, endpoint.port
    try:
        address = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        advice = f"let /etc/hosts or DNS on this node know {host}, or type an IP address"
        return Result(check, "fail", f"this node cannot find the address of {host}: {error}", advice)
    if is_this_machine(address) and not node_rank:
        try:
            listen(address, port).close()
        except JoinError as error:
            # Without a node rank, this may be the second node on this machine, and the first one has the port.
            return Result(check, "fail" if node_rank == 0 else "warn", str(error), "give all nodes another port")
        return Result(check, "pass", f"{endpoint} is this machine, and its port is free")
    try:
        socket.create_connection((address, port), timeout=_CONNECT_SECONDS).close()
    except ConnectionRefusedError:
        return Result(check, "pass", f"{endpoint} answers; no process listens there yet")
    except OSError as error:
        advice = f"check that {host} is up, and that no firewall blocks TCP port {port}"
        return Result(check, "fail", f"this node cannot reach {endpoint}: {error.strerror or error}", advice)
    return Result(check, "pass", f"{endpoint} answers")


def check_links(report: WorkerReport) -> Result:
    """Each node has tried to connect to each other node, at any free port, as gloo and NCCL do."""
    nodes = ", ".join(report.nodes)
    if not report.broken_links:
        return Result("links", "pass", f"each of {len(report.nodes)} nodes reaches every other: {nodes}")
    return Result(
        "links",
        "fail",
        f"{'; '.join(report.broken_links)}. Nodes: {nodes}",
        "open all TCP ports between the nodes (gloo and NCCL use any); where an address is in the wrong network, "
        "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME",
    )
