"""The leader's side of a job: hosts the store, forms the rounds, watches the nodes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Sequence
from typing import Any

from minetorch_launch.errors import JoinError
from minetorch_launch.rendezvous.membership import Liveness, Membership, Roster, Settings
from minetorch_launch.rendezvous.messages import (
    PROTOCOL,
    NodeArrived,
    NodeLost,
    Order,
    Report,
    build,
    from_json,
    parse,
    to_json,
)
from minetorch_launch.rendezvous.participant import Participant
from minetorch_launch.rendezvous.round import LeaderLostError, Round
from minetorch_launch.rendezvous.store_client import StoreClient, StoreLostError

_MAX_HOSTS = 8


def choose(
    arrived: Sequence[Participant], expected: Collection[str], nodes: tuple[int, int], *, is_quiet: bool
) -> list[Participant] | None:
    """The participants of the next round; None if it is too early to begin.

    Args:
        arrived: the nodes that have arrived, in this order; the leader first.
        expected: ids of the living nodes of the last round.
        nodes: minimum and maximum.
        is_quiet: whether no node has arrived for some time.
    """
    minimum, maximum = nodes
    returning = [each for each in arrived if each.node_id in expected]
    others = [each for each in arrived if each.node_id not in expected]
    chosen = [*returning, *others][:maximum]
    if len(returning) < len(expected) or len(chosen) < minimum:
        return None
    return chosen if len(chosen) == maximum or len(returning) >= minimum or is_quiet else None


class Host(Membership):
    """The leader's side of a job.

    Args:
        expected: ids of the nodes that have lost the last leader and come here, this one included.
    """

    def __init__(self, store: StoreClient, settings: Settings, node_id: str, expected: Collection[str] = ()) -> None:
        super().__init__(store, settings, leader=node_id)
        self._expected = set(expected)
        self._arrived: dict[str, Participant] = {}  # for the next round
        self._arrived_at = time.monotonic()
        self._pulses: dict[str, dict[str, Any]] = {}  # the last of each other node, from its arrival to its end
        self._liveness = Liveness(settings.timing.lost)
        self._beats = self._head = 0
        self._log_lock = asyncio.Lock()
        self._failure: str | None = None  # why the nodes did not come together

    async def start(self) -> None:
        """Let nodes join.

        Raises:
            StoreLostError: the store does not answer.
        """
        await self._store.set("head", "0")
        await self._store.set("roster", "null")
        await self._beat()
        hello = {"rdzv_id": self._settings.rdzv_id, "version": self._settings.version, "protocol": PROTOCOL}
        await self._store.set("hello", json.dumps({**hello, "leader": self.leader}))
        self._begin(self._read_inbox(), self._pulse())

    # A round.

    async def join(self, me: Participant, seconds: float) -> Round:
        """Wait for the other nodes, then publish the roster. A living node of the last round is always waited for.

        Raises:
            JoinError: too few nodes have come.
            LeaderLostError: this node's own store is lost.
        """
        self.round = None
        self._arrived = {me.node_id: me, **self._arrived}
        began = said = time.monotonic()
        while (chosen := self._choose()) is None:
            waited = time.monotonic() - began
            if waited > seconds and self._expected <= self._arrived.keys():
                self._failure = self._who_is_here(waited)
                raise JoinError(self._failure, job_can_be_requeued=True)
            said = await self._wait_for_others(began, said, self._who_is_here)
            if self.lost is not None:
                raise LeaderLostError(self.lost)
        return await self._publish_roster(sorted(chosen, key=lambda each: each.order))

    @property
    def has_enough(self) -> bool:
        """Whether as many nodes as the minimum are here."""
        return len(self._pulses) + 1 >= self._settings.nodes[0]

    def _choose(self) -> list[Participant] | None:
        timing, arrived = self._settings.timing, list(self._arrived.values())
        patience = timing.later_quiet if any(each.attempts for each in arrived) else timing.first_quiet
        is_quiet = time.monotonic() - self._arrived_at > patience
        return choose(arrived, self._expected, self._settings.nodes, is_quiet=is_quiet)

    def _who_is_here(self, seconds: float) -> str:
        return self._too_few(len(self._arrived), _hosts(self._arrived.values()), seconds)

    async def _publish_roster(self, participants: Sequence[Participant]) -> Round:
        number = max(each.attempts for each in participants) + 1
        self.roster = roster = Roster(number, tuple(participants))
        rank = roster.rank_of(self.leader)
        assert rank is not None, "the leader takes part"
        self.round = Round(number, roster.participants, rank, leads=True, publish=self._publish)
        self._expected = {each.node_id for each in participants}
        self._arrived = {name: each for name, each in self._arrived.items() if name not in self._expected}
        await self._append({"roster": roster.to_data()}, {"roster": json.dumps(roster.to_data())})
        return self.round

    async def _publish(self, order: Order) -> None:
        assert self.roster is not None
        await self._append({"round": self.roster.number, "order": to_json(order)})

    async def _append(self, entry: dict[str, Any], values: dict[str, str] | None = None) -> None:
        """Append ``entry`` to the log; before that, set ``values`` of other keys."""
        try:
            async with self._log_lock:
                for key, value in (values or {}).items():
                    await self._store.set(key, value)
                self._head += 1
                await self._store.set(f"log/{self._head}", json.dumps(entry))
                await self._store.set("head", str(self._head))
        except StoreLostError as error:
            raise LeaderLostError(str(error)) from error

    # The other nodes.

    async def _read_inbox(self) -> None:
        while True:
            for text in await self._store.take("inbox"):
                message = parse(text)
                if isinstance(message, dict):
                    self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        newcomer, report = build(Participant, message.get("arrival")), from_json(message.get("report"))
        if newcomer is not None:
            self._take_in(newcomer, is_reconnected=message.get("reconnected") is True)
        elif self.round is None or message.get("round") != self.round.number:
            return  # of an earlier round
        elif not isinstance(report, Report) or isinstance(report, NodeLost | NodeArrived):
            return  # malformed, or not for a node to say
        elif 0 <= report.node < len(self.round.participants):
            self.round.reports.put_nowait(report)

    def _take_in(self, node: Participant, *, is_reconnected: bool) -> None:
        if is_reconnected:  # it has lost this leader for some time, and its workers with it
            self._drop(node.node_id)
        self._pulses.setdefault(node.node_id, {})
        self._arrived[node.node_id] = node
        self._arrived_at = time.monotonic()
        self._changed.set()
        has_room = len(self._expected) < self._settings.nodes[1]
        if self.round is not None and node.node_id not in self._expected and has_room:
            self.round.reports.put_nowait(NodeArrived())

    def _drop(self, node_id: str) -> None:
        self._pulses.pop(node_id, None)
        self._arrived.pop(node_id, None)
        self._changed.set()
        rank = self.roster.rank_of(node_id) if self.roster is not None and node_id in self._expected else None
        self._expected.discard(node_id)
        if self.round is not None and rank is not None:
            self.round.lost |= {rank}
            self.round.others.pop(rank, None)
            self.round.reports.put_nowait(NodeLost(rank))

    async def _pulse(self) -> None:
        while True:
            await self._beat()
            await self._look()
            await asyncio.sleep(self._settings.timing.pulse)

    async def _beat(self) -> None:
        self._beats += 1
        nodes = self._arrived.values() if self.round is None else self.round.participants
        pulse = {"beat": self._beats, "running": self.round is not None, "count": len(nodes), "hosts": _hosts(nodes)}
        await self._store.set("pulse/leader", json.dumps(pulse))

    async def _look(self) -> None:
        """Read all pulses; drop the nodes that are silent or have left."""
        known = list(self._pulses)
        values = await self._store.get(*(f"pulse/{node_id}" for node_id in known)) if known else []
        pulses: dict[str, str | None] = dict.fromkeys(self._expected - {self.leader})
        pulses.update(zip(known, values, strict=True))
        silent = self._liveness.look(pulses, time.monotonic())
        for node_id, value in pulses.items():
            pulse = parse(value)
            if node_id in silent or (isinstance(pulse, dict) and pulse.get("left") is True):
                self._drop(node_id)
            elif node_id in self._pulses and isinstance(pulse, dict):
                self._pulses[node_id] = pulse
                self._note_status(node_id, pulse.get("status"))

    def _note_status(self, node_id: str, status: object) -> None:
        if self.round is None or self.roster is None or not isinstance(status, dict):
            return
        rank = self.roster.rank_of(node_id)
        if rank is not None:
            self.round.others[rank] = status

    async def _say_farewell(self) -> None:
        """End the job for nodes that wait, and keep the store until all have read the last entry."""
        await self._append({"closed": True, "reason": self._failure})
        while any(pulse.get("read") != self._head for pulse in self._pulses.values()):
            await asyncio.sleep(0.02)
            await self._look()


def _hosts(nodes: Collection[Participant]) -> list[str]:
    return sorted({each.host for each in nodes})[:_MAX_HOSTS]
