"""This node's membership in a job, over one store: the part that the leader and the other nodes have in common.

The leader hosts the store and writes all keys but the last two, so that the nodes have nothing to agree on:

===================  ===================================================================================
``hello``            ``{"rdzv_id", "version", "protocol", "leader"}``, written last: then nodes can join
``log/N``            entry N of the log, which every node reads in order: a roster, an order, or the end
``head``             number of the last entry: a node that joins begins to read there
``roster``           the last roster, for a node that joins late
``pulse/leader``     once a second: a counter, and which nodes have joined
``pulse/NODE_ID``    once a second: a node's counter, its status, and the last entry that it has read
``inbox``            a queue of arrivals and reports for the leader
===================  ===================================================================================

The traffic is O(N): the leader reads all pulses with one call, and the others read the leader's. The store pushes
entries and reports; no node polls for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from minetorch_launch.rendezvous.messages import build
from minetorch_launch.rendezvous.participant import Participant
from minetorch_launch.rendezvous.round import LeaderLostError, Round
from minetorch_launch.rendezvous.store_client import StoreClient, StoreLostError
from minetorch_launch.validators import Endpoint

_SAY_EVERY_SECONDS = 30.0
_FAREWELL_SECONDS = 5.0


@dataclass(frozen=True)
class Timing:
    """Times in seconds."""

    pulse: float = 1.0
    lost: float = 12.0
    """A node is lost when its pulse has not changed for so long, by the clock of the node that reads it."""

    first_quiet: float = 10.0
    """The first round begins with fewer nodes than the maximum when none has arrived for so long."""

    later_quiet: float = 2.0
    """The same for later rounds."""


@dataclass(frozen=True)
class Settings:
    """What a node knows of the job before it joins: fields of the launch plan."""

    endpoint: Endpoint
    rdzv_id: str
    nodes: tuple[int, int]
    """Minimum and maximum."""

    host: str
    nproc: int
    node_rank: int | None = None
    join_timeout: float = 600.0
    local_addr: str | None = None
    version: str = ""
    """Version of Minetorch; by default the installed one."""

    say: Callable[[str], None] = print
    """Shows a line to the user."""

    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True)
class Roster:
    """The nodes of a round, as the leader published them."""

    number: int
    participants: tuple[Participant, ...]

    @classmethod
    def from_data(cls, data: object) -> Roster | None:
        """The roster that :meth:`to_data` made; None for anything else."""
        if not isinstance(data, dict) or not isinstance(data.get("participants"), list):
            return None
        found = [build(Participant, each) for each in data["participants"]]
        return build(cls, {**data, "participants": tuple(found)}) if all(found) and found else None

    def to_data(self) -> dict[str, Any]:
        """The roster for JSON."""
        return {"number": self.number, "participants": [vars(each) for each in self.participants]}

    def rank_of(self, node_id: str) -> int | None:
        """Node rank of a node; None if it is not one of them."""
        return next((rank for rank, each in enumerate(self.participants) if each.node_id == node_id), None)


class Liveness:
    """Tells which nodes are silent by changes of their pulses, so that the clocks of several machines may differ."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._heard: dict[str, tuple[str | None, float]] = {}
        self._looked = 0.0

    def look(self, pulses: dict[str, str | None], now: float) -> set[str]:
        """The nodes whose pulse has not changed for too long; a node without a first pulse has twice the time."""
        # A process that was stopped itself (Ctrl-Z) has not seen the others' pulses, and grants new time.
        was_stopped = now - self._looked > self._seconds / 2
        self._looked = now
        silent = set()
        for node, pulse in pulses.items():
            if was_stopped or node not in self._heard or self._heard[node][0] != pulse:
                self._heard[node] = pulse, now
            elif now - self._heard[node][1] > self._seconds * (1 if pulse is not None else 2):
                silent.add(node)
        return silent


class Membership:
    """This node's membership in a job, over one store.

    Attributes:
        leader: the leader's node id.
        lost: why the leader is lost; None as long as it is not.
        roster: the last roster.
        round: the round that this node takes part in.
    """

    def __init__(self, store: StoreClient, settings: Settings, *, leader: str) -> None:
        self.leader = leader
        self.lost: str | None = None
        self.roster: Roster | None = None
        self.round: Round | None = None
        self._store, self._settings = store, settings
        self._changed = asyncio.Event()  # ends a pause in `join`
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def process_ended(self) -> bool:
        """Whether the leader may be well, and this node's own store process is the reason of the loss."""
        return self._store.process_ended

    async def close(self) -> None:
        """Say farewell and leave; not for long."""
        if self.lost is None:
            with suppress(LeaderLostError, StoreLostError, asyncio.TimeoutError):
                await asyncio.wait_for(self._say_farewell(), _FAREWELL_SECONDS)
        self.abandon()

    async def _say_farewell(self) -> None:
        raise NotImplementedError

    def abandon(self) -> None:
        """Leave without a farewell."""
        self.lose("closed")
        for task in self._tasks:
            task.cancel()
        self._store.close()

    def lose(self, reason: str) -> None:
        """The leader is lost: end every wait."""
        self.lost = self.lost or reason
        self._changed.set()
        if self.round is not None:
            self.round.fail(self.lost)

    def _begin(self, *coroutines: Coroutine[Any, Any, None]) -> None:
        self._tasks += [asyncio.create_task(self._carry(each)) for each in coroutines]

    async def _carry(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await coroutine
        except StoreLostError as error:
            self.lose(str(error))
        except Exception as error:  # without this task the node would wait for ever
            self.lose(f"{type(error).__name__}: {error}")
            raise

    async def _wait_for_others(self, began: float, said: float, text: Callable[[float], str]) -> float:
        """Wait a little, and show ``text`` now and then; when it was shown last."""
        now = time.monotonic()
        if now - said > _SAY_EVERY_SECONDS:
            said = now
            self._settings.say(f"minetorch-launch: {text(now - began)}")
        await pause(self._changed, 0.5)
        return said

    def _too_few(self, count: int, hosts: list[str], seconds: float) -> str:
        minimum, endpoint = self._settings.nodes[0], self._settings.endpoint
        return (
            f"{count} of {minimum} nodes have joined at {endpoint} after {seconds:.0f} s (here: "
            f"{', '.join(hosts) or 'none'}): start minetorch-launch with the same command, --nodes and "
            "--rdzv-endpoint on the others, and check that they can reach this address"
        )


async def pause(event: asyncio.Event, seconds: float) -> None:
    """Wait for ``event``, but not longer than ``seconds``; then clear it."""
    timer = asyncio.get_running_loop().call_later(seconds, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()
        event.clear()
