"""The side of a node that does not lead: reads the leader's log, and sends it arrivals, reports and pulses."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from minetorch_launch.errors import JoinError
from minetorch_launch.rendezvous.membership import Liveness, Membership, Roster, pause
from minetorch_launch.rendezvous.messages import Order, Report, from_json, parse, to_json
from minetorch_launch.rendezvous.round import LeaderLostError, Mailbox, Round
from minetorch_launch.rendezvous.store_client import StoreLostError

if TYPE_CHECKING:
    from minetorch_launch.rendezvous.membership import Settings
    from minetorch_launch.rendezvous.participant import Participant
    from minetorch_launch.rendezvous.store_client import StoreClient

__all__ = ["Follower"]

_FAREWELL_SECONDS = 2.0


class Follower(Membership):
    """The side of a node that does not lead.

    Args:
        store: hosted by the leader.
        settings: of this node.
        node_id: this node's.
        leader: the leader's node id.
        is_participant: whether this node took part in the last round.
    """

    def __init__(
        self, store: StoreClient, settings: Settings, node_id: str, leader: str, *, is_participant: bool
    ) -> None:
        super().__init__(store, settings, leader=leader)
        self._node_id, self._is_participant = node_id, is_participant
        self._is_reconnected = True
        self._is_closed = self._has_left = False
        self._leaders_pulse: dict[str, Any] = {}  # the last one
        self._liveness = Liveness(settings.timing.lost)
        self._beats = self._head = 0
        self._beat_now = asyncio.Event()
        self._unsent: Mailbox[str | None] = Mailbox()

    async def start(self) -> None:
        """Find the end of the log, and begin to pulse."""
        head, roster = await self._store.get("head", "roster") or ("0", "")
        self._head = int(head) if head.isdecimal() else 0
        self.roster = Roster.from_data(parse(roster))
        await self._beat()
        self._begin(self._read_log(), self._pulse(), self._send())

    async def join(self, me: Participant, seconds: float) -> Round:
        """Tell the leader of this node, and wait for a roster with it.

        A node of the last round waits as long as the leader lives, since the leader waits for the last of them.
        """
        self.round = None
        self._unsent.put(json.dumps({"arrival": vars(me), "reconnected": self._is_reconnected}))
        self._is_reconnected = False
        began = said = time.monotonic()
        while self.lost is None:
            if self.round is not None:
                self._is_participant = True
                return self.round
            if self._is_closed:
                raise JoinError(self._outside("has ended") if self._is_outside else self._ended())
            if time.monotonic() - began > seconds and not self._is_participant:
                raise self._timed_out(time.monotonic() - began)
            said = await self._wait_for_others(began, said, self._text)
        raise LeaderLostError(self.lost)

    @property
    def _is_outside(self) -> bool:
        """Whether the other nodes train without this one."""
        return not self._is_participant and self._leaders_pulse.get("running") is True

    def _text(self, seconds: float) -> str:
        if self._is_outside:
            return f"{self._taken()}; waiting for a place"
        return self._too_few(self._count(), self._hosts(), seconds)

    def _timed_out(self, seconds: float) -> JoinError:
        if self._is_outside:
            return JoinError(self._outside(f"went on for {seconds:.0f} s"))
        return JoinError(self._text(seconds), job_can_be_requeued=True)

    def _ended(self) -> str:
        job, endpoint = self._settings.rdzv_id, self._settings.endpoint
        return f"the job {job} at {endpoint} has ended: another node failed or was stopped; see its report"

    def _outside(self, what: str) -> str:
        job, endpoint = self._settings.rdzv_id, self._settings.endpoint
        return (
            f"the job {job} at {endpoint} {what} without this node: {self._taken()}. If this is a job of its own, "
            "give it another --rdzv-id and --rdzv-endpoint"
        )

    def _taken(self) -> str:
        places = self._settings.nodes[1]
        return f"other nodes have {self._count()} of {places} places of the job (on {', '.join(self._hosts())})"

    def _count(self) -> int:
        count = self._leaders_pulse.get("count")
        return count if isinstance(count, int) else 0

    def _hosts(self) -> list[str]:
        hosts = self._leaders_pulse.get("hosts")
        return [str(each) for each in hosts] if isinstance(hosts, list) else []

    def _report(self, number: int, report: Report) -> None:
        self._unsent.put(json.dumps({"round": number, "report": to_json(report)}))

    async def _send(self) -> None:
        while (text := await self._unsent.get()) is not None:
            await self._store.push("inbox", text)

    async def _read_log(self) -> None:
        while True:
            entry = parse(await self._store.wait(f"log/{self._head + 1}"))
            self._head += 1
            if isinstance(entry, dict):
                self._take_entry(entry)
            self._beat_now.set()

    def _take_entry(self, entry: dict[str, Any]) -> None:
        roster, order = Roster.from_data(entry.get("roster")), from_json(entry.get("order"))
        if roster is not None:
            self.roster = roster
            rank = roster.rank_of(self._node_id)
            if rank is not None:
                deliver = partial(self._report, roster.number)
                self.round = Round(roster.number, roster.participants, rank, leads=False, deliver=deliver)
                self._changed.set()
        elif isinstance(order, Order) and self.round and entry.get("round") == self.round.number:
            self.round.orders.put(order)
        elif entry.get("closed") is True:
            self._is_closed = True
            self._changed.set()
            if self.round is not None:
                self.round.fail("the leader left the job")

    async def _pulse(self) -> None:
        while True:
            await self._beat()
            [pulse] = await self._store.get("pulse/leader") or [""]
            if self._liveness.look({"leader": pulse}, time.monotonic()):
                self.lose(f"the leader has been silent for {self._settings.timing.lost:g} s")
                return
            content = parse(pulse)
            self._leaders_pulse = content if isinstance(content, dict) else {}
            await pause(self._beat_now, self._settings.timing.pulse)

    async def _beat(self) -> None:
        self._beats += 1
        status = None if self.round is None else self.round.status
        pulse = {"beat": self._beats, "read": self._head, "status": status, "left": self._has_left}
        await self._store.set(f"pulse/{self._node_id}", json.dumps(pulse))

    async def close(self) -> None:
        """Send what is unsent and a farewell, and leave."""
        if self.lost is None:
            with suppress(StoreLostError, asyncio.TimeoutError):
                await asyncio.wait_for(self._say_farewell(), _FAREWELL_SECONDS)
        self.abandon()

    async def _say_farewell(self) -> None:
        self._unsent.put(None)
        while not self._tasks[-1].done():
            await asyncio.sleep(0.01)
        self._has_left = True
        await self._beat()
