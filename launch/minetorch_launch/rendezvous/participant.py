"""A node of a round, as it introduces itself to the others."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from minetorch_launch.rendezvous.messages import PROTOCOL, build, parse

__all__ = ["Participant", "sort_key"]


@dataclass(frozen=True)
class Participant:
    """A node of a round. All nodes have the same list of them, sorted by ``order``."""

    order: str
    """Sorts the nodes; see `sort_key`."""

    host: str
    address: str
    pid: int
    nproc: int
    """Number of its workers."""

    standby_port: int
    """Port on which it hosts a store when the leader is lost."""

    workers_port: int
    """Port on which it hosts the workers' store when it is the first node."""

    failures: int = 0
    """Failures that it has counted in this launch; a node that joined late has not seen all of them."""

    attempts: int = 0
    """Number of the last round that it took part in."""

    launch_id: str = ""
    """The launch's unique id. The leader proposes it; the others take it over with the first round."""

    node_id: str = ""
    """Unique to this launcher process."""

    version: str = ""
    """Version of Minetorch."""

    protocol: int = PROTOCOL

    @classmethod
    def from_json(cls, text: str) -> Participant | None:
        """The participant that :meth:`to_json` wrote; None for anything else."""
        return build(cls, parse(text))

    def to_json(self) -> str:
        """The participant as JSON, for :meth:`from_json`."""
        return json.dumps(vars(self))


def sort_key(node_rank: int | None, is_endpoint: bool, host: str, address: str, pid: int) -> str:
    """The key that sorts nodes: by ``--node-rank``; without one the endpoint's host first, then by host name.

    Host names sort in natural order (node2 before node10), and nodes on one machine by address and process.
    """
    natural = re.sub(r"\d+", lambda digits: f"{int(digits[0]):020}", host)
    numbered = f"0 {node_rank:09}" if node_rank is not None else f"1 {0 if is_endpoint else 1}"
    return f"{numbered} {natural} {address} {pid:09}"
