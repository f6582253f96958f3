"""The leader's side of a job: hosts the store, forms the rounds, watches the nodes."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from minetorch_launch.errors import JoinError
from minetorch_launch.rendezvous.membership import Liveness, Membership, Roster
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
from minetorch_launch.rendezvous.store_client import StoreLostError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from minetorch_launch.rendezvous.membership import Settings
    from minetorch_launch.rendezvous.store_client import StoreClient

__all__ = ["Host", "choose"]

_FAREWELL_SECONDS = 5.0
_HOSTS_SHOWN = 8


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
    if len(returning) < len(expected):
        return None
    chosen = [*returning, *(each for each in arrived if each.node_id not in expected)][:maximum]
    if len(chosen) < minimum:
        return None
    return chosen if len(chosen) == maximum or len(returning) >= minimum or is_quiet else None


class Host(Membership):
    """The leader's side of a job.

    Args:
        store: hosted by this node.
        settings: of this node.
        node_id: this node's.
        expected: ids of the other nodes that have lost the last leader as well, and come here.
    """

    def __init__(self, store: StoreClient, settings: Settings, node_id: str, expected: Collection[str] = ()) -> None:
        super().__init__(store, settings, leader=node_id)
        self._node_id = node_id
        self._expected = set(expected)
        self._arrived: dict[str, Participant] = {}
        self._arrived_at = time.monotonic()
        self._pulses: dict[str, dict[str, Any]] = {}  # of all living nodes that have ever arrived, the leader excluded
        self._liveness = Liveness(settings.timing.lost)
        self._beats = self._head = 0
        self._log_lock = asyncio.Lock()

    async def start(self) -> None:
        """Write the keys that nodes read when they join, and begin to read the inbox."""
        for key in ("head", "roster"):
            await self._store.set(key, "0")
        await self._beat()
        hello = {"rdzv_id": self._settings.rdzv_id, "version": self._settings.version, "protocol": PROTOCOL}
        hello["leader"] = self._node_id
        await self._store.set("hello", json.dumps(hello))
        self._begin(self._read_inbox(), self._pulse())

    @property
    def has_enough(self) -> bool:
        """Whether as many nodes as the minimum are here."""
        return len(self._pulses) + 1 >= self._settings.nodes[0]

    async def join(self, me: Participant, seconds: float) -> Round:
        """Wait for the other nodes, then publish the roster. A living node of the last round is always waited for."""
        self.round = None
        self._arrived = {me.node_id: me, **self._arrived}
        self._expected.add(me.node_id)
        began = said = time.monotonic()
        while (chosen := self._choose()) is None:
            if time.monotonic() - began > seconds and self._expected <= self._arrived.keys():
                raise JoinError(self._text(time.monotonic() - began), job_can_be_requeued=True)
            said = await self._wait_for_others(began, said, self._text)
            if self.lost is not None:
                raise LeaderLostError(self.lost)
        return await self._publish_roster(chosen)

    def _choose(self) -> list[Participant] | None:
        timing = self._settings.timing
        is_first = not any(each.attempts for each in self._arrived.values())
        is_quiet = time.monotonic() - self._arrived_at > (timing.first_quiet if is_first else timing.later_quiet)
        return choose(list(self._arrived.values()), self._expected, self._settings.nodes, is_quiet=is_quiet)

    def _text(self, seconds: float) -> str:
        return self._too_few(len(self._arrived), self._hosts(), seconds)

    def _hosts(self) -> list[str]:
        nodes = self._arrived.values() if self.round is None else self.round.participants
        return sorted({each.host for each in nodes})[:_HOSTS_SHOWN]

    async def _publish_roster(self, chosen: list[Participant]) -> Round:
        participants = tuple(sorted(chosen, key=lambda each: each.order))
        number = max(each.attempts for each in participants) + 1
        self.roster = roster = Roster(number, self._node_id, participants)
        rank = roster.rank_of(self._node_id)
        assert rank is not None, "the leader takes part"
        self.round = Round(number, participants, rank, leads=True, publish=self._publish)
        self._expected = {each.node_id for each in participants}
        self._arrived = {name: each for name, each in self._arrived.items() if name not in self._expected}
        try:
            await self._store.set("roster", json.dumps(roster.to_data()))
            await self._append({"roster": roster.to_data()})
        except StoreLostError as error:
            raise LeaderLostError(str(error)) from error
        return self.round

    async def _publish(self, order: Order) -> None:
        assert self.roster is not None
        try:
            await self._append({"round": self.roster.number, "order": to_json(order)})
        except StoreLostError as error:
            raise LeaderLostError(str(error)) from error

    async def _append(self, entry: dict[str, Any]) -> None:
        async with self._log_lock:
            self._head += 1
            await self._store.set(f"log/{self._head}", json.dumps(entry))
            await self._store.set("head", str(self._head))

    async def _read_inbox(self) -> None:
        while True:
            for text in await self._store.take("inbox"):
                message = parse(text)
                if not isinstance(message, dict):
                    continue
                newcomer = build(Participant, message.get("arrival"))
                if newcomer is not None:
                    await self._take_in(newcomer, is_reconnected=message.get("reconnected") is True)
                elif self.round is not None and message.get("round") == self.round.number:
                    self._take_report(from_json(message.get("report")), self.round)

    def _take_report(self, report: Report | Order | None, round_: Round) -> None:
        if not isinstance(report, Report) or isinstance(report, NodeLost | NodeArrived):
            return
        if 0 <= report.node < len(round_.participants):
            round_.reports.put(report)

    async def _take_in(self, node: Participant, *, is_reconnected: bool) -> None:
        if node.node_id not in self._pulses and await self._store.get(f"pulse/{node.node_id}") is None:
            return  # no launcher wrote this
        if is_reconnected:
            self._drop(node.node_id)
        self._pulses.setdefault(node.node_id, {})
        self._arrived[node.node_id] = node
        self._arrived_at = time.monotonic()
        self._changed.set()
        if self.round is None:
            return
        living = len(self.round.participants) - len(self.round.lost)
        if node.node_id not in self._expected and living < self._settings.nodes[1]:
            self.round.reports.put(NodeArrived())

    def _drop(self, node_id: str) -> None:
        """A node is lost, or has left."""
        self._pulses.pop(node_id, None)
        self._arrived.pop(node_id, None)
        self._expected.discard(node_id)
        self._changed.set()
        if self.round is None or self.roster is None:
            return
        rank = self.roster.rank_of(node_id)
        if rank is not None and rank not in self.round.lost:
            self.round.lost |= {rank}
            self.round.others.pop(rank, None)
            self.round.reports.put(NodeLost(rank))

    async def _pulse(self) -> None:
        while True:
            await self._beat()
            await self._look()
            await asyncio.sleep(self._settings.timing.pulse)

    async def _beat(self) -> None:
        self._beats += 1
        count = len(self._arrived) if self.round is None else len(self.round.participants)
        pulse = {"beat": self._beats, "running": self.round is not None, "count": count, "hosts": self._hosts()}
        await self._store.set("pulse/leader", json.dumps(pulse))

    async def _look(self) -> None:
        known = list(self._pulses)
        values = await self._store.get(*(f"pulse/{each}" for each in known)) if known else []
        missing = dict.fromkeys(self._expected - {self._node_id} - set(known))
        pulses: dict[str, str | None] = {**missing, **dict(zip(known, values or (), strict=False))}
        for node_id in self._liveness.look(pulses, time.monotonic()):
            self._drop(node_id)
        for node_id in known:
            self._read_pulse(node_id, parse(pulses.get(node_id)))

    def _read_pulse(self, node_id: str, pulse: object) -> None:
        if not isinstance(pulse, dict) or node_id not in self._pulses:
            return
        self._pulses[node_id] = pulse
        if pulse.get("left") is True:
            self._drop(node_id)
        elif self.round is not None and self.roster is not None and isinstance(pulse.get("status"), dict):
            rank = self.roster.rank_of(node_id)
            if rank is not None:
                self.round.others[rank] = pulse["status"]

    async def close(self) -> None:
        """End the job for the nodes that wait, and keep the store until all have read the last entry; not for long."""
        if self.lost is None:
            with suppress(StoreLostError, asyncio.TimeoutError):
                await asyncio.wait_for(self._say_farewell(), _FAREWELL_SECONDS)
        self.abandon()

    async def _say_farewell(self) -> None:
        await self._append({"closed": True})
        while any(pulse.get("read") != self._head for pulse in self._pulses.values()):
            await asyncio.sleep(0.02)
            await self._look()
