"""This node's membership in a job, over one store: the part that the leader and the other nodes have in common.

Keys of the store. The leader writes all but the last two, so that there is nothing to agree on:

=====================  ==================================================================================
``hello``              ``{"rdzv_id", "version", "protocol", "leader"}``, written last: then nodes can join
``log/N``              entry N of the log, which every node reads in order: a roster, an order, the end
``head``               number of the last entry, where a node that joins begins to read
``roster``             the last roster, for a node that joins late
``pulse/leader``       a counter, and how many nodes have joined; once a second
``pulse/NODE_ID``      each other node's counter, status, and the last entry that it has read; once a second
``inbox``              a queue: arrivals and reports, for the leader
=====================  ==================================================================================

Traffic is O(N): the leader reads all pulses with one call; the others read the leader's. Entries and reports are
pushed: nobody polls for them.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minetorch_launch.rendezvous.messages import build
from minetorch_launch.rendezvous.participant import Participant
from minetorch_launch.rendezvous.store_client import StoreLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from minetorch_launch.rendezvous.endpoints import Endpoint
    from minetorch_launch.rendezvous.round import Round
    from minetorch_launch.rendezvous.store_client import StoreClient

__all__ = ["Liveness", "Membership", "Roster", "Settings", "Timing", "pause"]

_SAY_EVERY_SECONDS = 30.0


@dataclass(frozen=True)
class Timing:
    """Times in seconds."""

    pulse: float = 1.0
    lost: float = 12.0
    """A node is lost when its pulse has not changed for so long, by the clock of the node that reads it."""

    first_quiet: float = 10.0
    """The first round begins with fewer nodes than the maximum when no other has arrived for so long."""

    later_quiet: float = 2.0
    """The same for later rounds."""


@dataclass(frozen=True)
class Settings:
    """What a node knows of the job before it joins."""

    endpoint: Endpoint
    rdzv_id: str
    nodes: tuple[int, int]
    """Minimum and maximum."""

    host: str
    """This node's name."""

    nproc: int
    """Number of this node's workers."""

    node_rank: int | None = None
    join_timeout: float = 600.0
    local_addr: str | None = None
    """This node's address for the others, if the route to the leader does not tell it."""

    version: str = ""
    """Version of Minetorch; by default the installed one."""

    say: Callable[[str], None] = print
    """Shows a line to the user."""

    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True)
class Roster:
    """The nodes of a round, as the leader published them."""

    number: int
    leader: str
    """The leader's node id."""

    participants: tuple[Participant, ...]

    @classmethod
    def from_data(cls, data: object) -> Roster | None:
        """The roster that :meth:`to_data` wrote; None for anything else."""
        if not isinstance(data, dict) or not isinstance(data.get("participants"), list):
            return None
        participants = tuple(build(Participant, each) for each in data["participants"])
        return build(cls, {**data, "participants": participants}) if participants and None not in participants else None

    def to_data(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "participants": [vars(each) for each in self.participants]}

    def rank_of(self, node_id: str) -> int | None:
        """Node rank of a node; None if it does not take part."""
        return next((rank for rank, each in enumerate(self.participants) if each.node_id == node_id), None)


class Liveness:
    """Tells which nodes are silent, from their pulses alone, so that clocks of several machines need not agree."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._heard: dict[str, tuple[str | None, float]] = {}
        self._looked = 0.0

    def look(self, pulses: dict[str, str | None], now: float) -> set[str]:
        """The nodes whose pulse has not changed for too long. A node without a first pulse gets twice the time."""
        # This process was stopped itself, and has not seen the others' pulses.
        has_slept = now - self._looked > self._seconds / 2
        self._looked = now
        for node, pulse in pulses.items():
            if has_slept or self._heard.get(node, ("", 0))[0] != pulse:
                self._heard[node] = pulse, now
        return {
            node
            for node, pulse in pulses.items()
            if now - self._heard[node][1] > self._seconds * (1 if pulse is not None else 2)
        }


class Membership:
    """This node's membership in a job, over one store.

    Attributes:
        leader: the leader's node id.
        lost: why the leader is lost; None as long as it is not.
        roster: the last one that was published.
        round: the round that this node takes part in.
    """

    def __init__(self, store: StoreClient, settings: Settings, *, leader: str) -> None:
        self.leader = leader
        self.lost: str | None = None
        self.roster: Roster | None = None
        self.round: Round | None = None
        self._store, self._settings = store, settings
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to pulse and to read.

        Raises:
            StoreLostError: the store is lost already.
        """

    async def join(self, me: Participant, seconds: float) -> Round:
        """Take part in the next round.

        Raises:
            JoinError: the nodes did not come together.
            LeaderLostError: the leader is lost.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Leave the job, and say so."""

    def abandon(self) -> None:
        """Leave without a word."""
        self.lose("closed")
        for task in self._tasks:
            task.cancel()
        self._store.close()

    def lose(self, reason: str) -> None:
        """Note that the leader is lost, and end every wait."""
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
        except Exception as error:
            self.lose(f"{type(error).__name__}: {error}")
            raise

    async def _wait_for_others(self, began: float, said: float, text: Callable[[float], str]) -> float:
        """One step of a wait for other nodes, with a word to the user now and then; when that was."""
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
    """Wait for ``event``, but not longer than ``seconds``; and clear it."""
    timer = asyncio.get_running_loop().call_later(seconds, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()
        event.clear()
