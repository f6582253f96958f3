"""A node of a round, as it introduces itself to the others."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Participant:
    """A node of a round.

    Attributes:
        order: sorts the nodes; see `sort_key`.
        nproc: number of its workers.
        standby_port: where it hosts a store when the leader is lost.
        workers_port: where it hosts the workers' store when it is the first node.
        failures: failures that it has counted in this launch; a node that joined late has not seen all of them.
        attempts: number of the last round that it took part in.
        launch_id: unique id of the launch; all nodes take over that of the node with the most attempts.
        node_id: unique id of this launcher process.
    """

    order: str
    host: str
    address: str
    pid: int
    nproc: int
    standby_port: int
    workers_port: int
    failures: int = 0
    attempts: int = 0
    launch_id: str = ""
    node_id: str = ""


def sort_key(node_rank: int | None, is_endpoint: bool, host: str, address: str, pid: int) -> str:
    """The key that sorts nodes: by ``--node-rank``; without one the endpoint's host first, then by host name.

    Host names sort in natural order (node2 before node10), and nodes on one machine by address and process.
    """
    natural = re.sub(r"\d+", lambda digits: f"{int(digits[0]):020}", host)
    numbered = f"0 {node_rank:09}" if node_rank is not None else f"1 {0 if is_endpoint else 1}"
    return f"{numbered} {natural} {address} {pid:09}"
