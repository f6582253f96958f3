"""The side of a node that does not lead: reads the leader's log, and sends it arrivals, reports and pulses."""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from typing import Any

from minetorch_launch.errors import JoinError
from minetorch_launch.rendezvous.membership import Liveness, Membership, Roster, Settings, pause
from minetorch_launch.rendezvous.messages import Order, Report, from_json, parse, to_json
from minetorch_launch.rendezvous.participant import Participant
from minetorch_launch.rendezvous.round import LeaderLostError, Round
from minetorch_launch.rendezvous.store_client import StoreClient


class Follower(Membership):
    """The side of a node that does not lead.

    Args:
        was_there: whether this node took part in the last round of the leader.
    """

    def __init__(
        self, store: StoreClient, settings: Settings, node_id: str, leader: str, *, was_there: bool = False
    ) -> None:
        super().__init__(store, settings, leader=leader)
        self._node_id, self._was_there = node_id, was_there
        self._has_arrived = self._has_left = self._is_closed = False
        self._failure: str | None = None  # why the nodes did not come together, says the leader
        self._leaders_pulse: dict[str, Any] = {}
        self._liveness = Liveness(settings.timing.lost)
        self._beats = self._head = 0
        self._beat_now = asyncio.Event()
        self._unsent: asyncio.Queue[str | None] = asyncio.Queue()

    async def start(self) -> None:
        """Find the end of the log, and begin to pulse.

        Raises:
            StoreLostError: the store does not answer.
        """
        head, roster = await self._store.get("head", "roster")
        self._head = int(head) if head is not None and head.isdecimal() else 0
        self.roster = Roster.from_data(parse(roster))
        await self._beat()
        self._begin(self._read_log(), self._pulse(), self._send())

    # A round.

    async def join(self, me: Participant, seconds: float) -> Round:
        """Tell the leader of this node, and wait for a roster with it.

        A node of the last round has no limit but the leader's life: the leader waits until the last of them is here.
        A node with a number that was outside until the launch ended belongs to the next one: a batch system starts
        some nodes of a job again while others still stop.

        Raises:
            JoinError: there was no place for this node, too few nodes have come, or the job has ended.
            LeaderLostError: the leader is lost.
        """
        self._arrive(me)
        began = said = time.monotonic()
        while self.round is None:
            waited = time.monotonic() - began
            if self._is_closed and self._is_outside and self._settings.node_rank is not None:
                self.roster = None  # all of its nodes end
                raise LeaderLostError("the launch there has ended, and another one may begin")
            if self._is_closed or (waited > seconds and not self._was_there):
                raise self._refusal(waited)
            if self.lost is not None:
                raise LeaderLostError(self.lost)
            said = await self._wait_for_others(began, said, self._who_is_here)
        self._was_there = True
        return self.round

    def _arrive(self, me: Participant) -> None:
        self.round = None
        self._unsent.put_nowait(json.dumps({"arrival": vars(me), "reconnected": not self._has_arrived}))
        self._has_arrived = True

    def _refusal(self, waited: float) -> JoinError:
        if self._failure is not None or not (self._is_outside or self._is_closed):
            return JoinError(self._failure or self._who_is_here(waited), job_can_be_requeued=True)
        job = f"the job {self._settings.rdzv_id} at {self._settings.endpoint}"
        if not self._is_outside:
            return JoinError(f"{job} has ended: another node failed or was stopped; see its report")
        return JoinError(
            f"{job} {'has ended' if self._is_closed else f'went on for {waited:.0f} s'} without this node: "
            f"{self._taken()}. If this is a job of its own, give it another --rdzv-id and --rdzv-endpoint"
        )

    @property
    def _is_outside(self) -> bool:
        return not self._was_there and self._leaders_pulse.get("running") is True

    def _who_is_here(self, seconds: float) -> str:
        if self._is_outside:
            return f"{self._taken()}; waiting for a place"
        return self._too_few(*self._here(), seconds)

    def _taken(self) -> str:
        count, hosts = self._here()
        return f"other nodes have {count} of {self._settings.nodes[1]} places of the job (on {', '.join(hosts)})"

    def _here(self) -> tuple[int, list[str]]:
        count, hosts = self._leaders_pulse.get("count"), self._leaders_pulse.get("hosts")
        return count if isinstance(count, int) else 0, [str(each) for each in hosts] if isinstance(hosts, list) else []

    # From the leader, and to it.

    async def _read_log(self) -> None:
        while True:
            entry = parse(await self._store.wait(f"log/{self._head + 1}"))
            self._head += 1
            self._beat_now.set()  # the leader may wait until this node has read the entry
            if isinstance(entry, dict):
                self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        roster, order = Roster.from_data(entry.get("roster")), from_json(entry.get("order"))
        if roster is not None:
            self._take_roster(roster)
        elif isinstance(order, Order) and self.round is not None and entry.get("round") == self.round.number:
            self.round.orders.put_nowait(order)
        elif entry.get("closed") is True:
            self._is_closed = True
            self._failure = str(entry["reason"]) if entry.get("reason") else None
            self._changed.set()
            if self.round is not None:
                self.round.fail("the leader has left the job")

    def _take_roster(self, roster: Roster) -> None:
        self.roster = roster
        rank = roster.rank_of(self._node_id)
        if rank is not None:
            deliver = partial(self._report, roster.number)
            self.round = Round(roster.number, roster.participants, rank, leads=False, deliver=deliver)
            self._changed.set()

    def _report(self, number: int, report: Report) -> None:
        self._unsent.put_nowait(json.dumps({"round": number, "report": to_json(report)}))

    async def _send(self) -> None:
        while (text := await self._unsent.get()) is not None:
            await self._store.push("inbox", text)

    async def _pulse(self) -> None:
        while True:
            await self._beat()
            [text] = await self._store.get("pulse/leader")
            if self._liveness.look({self.leader: text}, time.monotonic()):
                return self.lose(f"the leader has been silent for {self._settings.timing.lost:g} s")
            pulse = parse(text)
            self._leaders_pulse = pulse if isinstance(pulse, dict) else {}
            await pause(self._beat_now, self._settings.timing.pulse)

    async def _beat(self) -> None:
        self._beats += 1
        status = None if self.round is None else self.round.status
        pulse = {"beat": self._beats, "read": self._head, "status": status, "left": self._has_left}
        await self._store.set(f"pulse/{self._node_id}", json.dumps(pulse))

    async def _say_farewell(self) -> None:
        """Send the remaining reports, and tell the leader that this node leaves."""
        self._unsent.put_nowait(None)
        while not self._tasks[-1].done():
            await asyncio.sleep(0.01)
        self._has_left = True
        await self._beat()
