"""One round: the nodes that run one worker group, and the ways between them and their leader."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from minetorch_launch.rendezvous.messages import Order, Report
from minetorch_launch.rendezvous.participant import Participant

T = TypeVar("T")


class LeaderLostError(Exception):
    """The leader of the round does not answer. Join again: the next node in order becomes the leader."""


class Round:
    """The nodes that run one worker group.

    Args:
        number: see below, as for the others.
        deliver: takes a report to the leader; None if this node leads.
        publish: takes an order to the other nodes; None if there are none.

    Attributes:
        number: which start of all workers this is, from 1; the same on every node.
        failures: failures counted so far in this launch (the highest count of all participants).
        launch_id: unique id of the launch.
        participants: all nodes, by node rank.
        node_rank: this node's.
        leads: whether this node is the leader.
        status: this node's own, JSON data; the leader gets it within about a second.
        lost: on the leader, the ranks of the nodes that are lost.
        others: on the leader, the last statuses of the other nodes, by rank.
        world_size: number of workers of all nodes.
        ranks: global ranks of this node's workers.
    """

    def __init__(
        self,
        number: int,
        participants: tuple[Participant, ...],
        node_rank: int,
        *,
        leads: bool,
        deliver: Callable[[Report], None] | None = None,
        publish: Callable[[Order], Awaitable[None]] | None = None,
    ) -> None:
        self.number, self.participants, self.node_rank, self.leads = number, participants, node_rank, leads
        self.failures = max(each.failures for each in participants)
        self.launch_id = max(participants, key=lambda each: each.attempts).launch_id
        self.world_size = sum(each.nproc for each in participants)
        first = sum(each.nproc for each in participants[:node_rank])
        self.ranks = range(first, first + participants[node_rank].nproc)
        self.status: dict[str, Any] | None = None
        self.lost: frozenset[int] = frozenset()
        self.others: dict[int, dict[str, Any]] = {}
        # An error in a queue is the last thing that its reader gets.
        self.orders: asyncio.Queue[Order | LeaderLostError] = asyncio.Queue()
        self.reports: asyncio.Queue[Report | LeaderLostError] = asyncio.Queue()
        self._deliver, self._publish = deliver or self.reports.put_nowait, publish

    @property
    def master_address(self) -> str:
        """Address of the workers' store."""
        return self.participants[0].address

    @property
    def master_port(self) -> int:
        """Port of the workers' store."""
        return self.participants[0].workers_port

    @property
    def statuses(self) -> dict[int, dict[str, Any]]:
        """On the leader, the last status of every node, by node rank."""
        own = {} if self.status is None else {self.node_rank: self.status}
        return self.others | own

    def report(self, report: Report) -> None:
        """Send ``report`` to the leader. Never blocks; the report is delivered as long as the leader lives."""
        self._deliver(report)

    async def next_order(self) -> Order:
        """Wait for the leader's next order, which is the same on every node.

        Raises:
            LeaderLostError: the leader does not answer.
        """
        return await _next(self.orders)

    async def next_report(self) -> Report:
        """On the leader: wait for the next report of any node.

        Raises:
            LeaderLostError: this node's own store is lost.
        """
        return await _next(self.reports)

    async def send_order(self, order: Order) -> None:
        """On the leader: send ``order`` to every node, this one included.

        Raises:
            LeaderLostError: this node's own store is lost.
        """
        if self._publish is not None:
            await self._publish(order)
        self.orders.put_nowait(order)

    def fail(self, reason: str) -> None:
        """Make every wait of this round raise LeaderLostError."""
        self.orders.put_nowait(LeaderLostError(reason))
        self.reports.put_nowait(LeaderLostError(reason))


async def _next(queue: asyncio.Queue[T | LeaderLostError]) -> T:
    item = await queue.get()
    if isinstance(item, LeaderLostError):
        queue.put_nowait(item)  # for every later call
        raise item
    return item
