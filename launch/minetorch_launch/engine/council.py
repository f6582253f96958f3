"""How the agents of all nodes keep each other informed, in the store of their round.

Each agent pulses: it writes a new value once a second, and watches the others' by its own clock, so that
clocks that differ between machines do no harm. A node whose pulse stands still is lost. On a single node the
store is a plain dictionary in this process, and all of this costs next to nothing.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch._C._distributed_c10d import Store

__all__ = ["LOST_SECONDS", "Council", "Member", "StoreLostError", "guarded"]

PULSE_SECONDS = 1.0
LOST_SECONDS = 12.0
"""A node that has not pulsed for so long is lost; a cut link to the store is noticed in the same time."""

_ASK_SECONDS = 0.25


class StoreLostError(Exception):
    """The node that keeps the store does not answer."""


@contextmanager
def guarded() -> Iterator[None]:
    """Turn what a store, or torch's rendezvous in it, raises when its host is gone into :class:`StoreLostError`."""
    try:
        yield
    except (RuntimeError, ValueError, TimeoutError, RendezvousConnectionError) as error:  # DistError is a RuntimeError
        raise StoreLostError(str(error).split("\n")[0]) from error


@dataclass(frozen=True)
class Member:
    """A node of this round, as its agent introduces itself."""

    order: tuple[Any, ...]
    """What the nodes are sorted by."""

    host: str
    address: str
    pid: int
    spare_port: int
    """Where it would keep the store, should the node that does so now be lost."""

    keeps_store: bool
    failures: int
    """Failures that it has counted in this launch; one that came late has not seen them all."""

    attempts: int
    """How often it has seen all workers started."""

    launch: str
    """The launch's own name, of which there is no second; of one that comes late, a name that nobody uses."""

    @classmethod
    def from_json(cls, text: bytes | str) -> Member:
        """What :meth:`to_json` has written."""
        data = json.loads(text)
        return cls(**{**data, "order": tuple(data["order"])})

    def to_json(self) -> str:
        """For the other nodes."""
        return json.dumps(asdict(self))


class Council:
    """One round's agents.

    Args:
        store: of this round alone.
        rank: of this node in it.
        members: all nodes by rank. Each has pulsed at least once.
        clock: seconds, of this machine alone.

    Every method raises :class:`StoreLostError` when the store's host is gone.
    """

    def __init__(
        self, store: Store, rank: int, members: tuple[Member, ...], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rank, self.members = rank, members
        self.lost: set[int] = set()
        """Ranks of the nodes that are gone."""

        self.status: Any = None
        """What this node's pulse carries along: plain data."""

        self.statuses: dict[int, Any] = {}
        """What the others' last pulses carried."""

        self.store_is_lost = False
        """Whether the store has failed to answer once: it is not asked again."""

        self._store, self._clock = store, clock
        self._pulses = 1
        self._pulsed_at = self._asked_at = clock()
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._read = 0

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Around questions to the store.

        After one whose answer took too long the connection is of no use any more: the answer may still come, when the
        store's host was only stopped, and be taken for that to the next question.
        """
        if self.store_is_lost:
            raise StoreLostError("it has failed to answer before")
        try:
            with guarded():
                yield
        except StoreLostError:
            self.store_is_lost = True
            raise

    @property
    def many(self) -> bool:
        """Whether there is any other node."""
        return len(self.members) > 1

    @property
    def leader(self) -> int:
        """The node that decides: the first that is not lost."""
        return min(set(range(len(self.members))) - self.lost)

    @property
    def leads(self) -> bool:
        """Whether this node decides."""
        return self.leader == self.rank

    def post(self, kind: str, **news: Any) -> None:
        """Tell all other nodes something."""
        if self.many:
            with self.asking():
                number = self._store.add("news", 1)
                self._store.set(f"news/{number}", json.dumps({"kind": kind, "from": self.rank, **news}))

    def hear(self) -> list[dict[str, Any]]:
        """Pulse, look who else does, and return what other nodes have posted since."""
        if not self.many or self._clock() - self._asked_at < _ASK_SECONDS:
            return []
        with self.asking():
            self._pulse()
            self._asked_at = self._clock()
            heard = []
            # A number is taken before its text is there: what is not yet is read the next time.
            while self._read < self._store.add("news", 0) and self._store.check([f"news/{self._read + 1}"]):
                self._read += 1
                heard.append(json.loads(self._store.get(f"news/{self._read}")))
        return [news for news in heard if news["from"] != self.rank]

    def stop_line(self, news: dict[str, Any]) -> str:
        """The words for another node's having been told to stop."""
        return f"minetorch-launch: {self.members[news['from']].host} was told to stop, and all nodes with it"

    def gather(self, what: str, mine: Any, seconds: float, check: Callable[[], None]) -> dict[int, Any]:
        """What every node has to say on ``what``, by rank; those that are lost or take too long are missing."""
        if not self.many:
            return {self.rank: mine}
        self.put(what, mine)
        end = self._clock() + seconds
        missing = set(range(len(self.members)))
        while True:
            with self.asking():
                self._pulse()
                missing -= {rank for rank in missing if self._store.check([f"{what}/{rank}"])}
            check()
            if not missing - self.lost or self._clock() > end:
                break
            time.sleep(0.05)
        with self.asking():
            there = sorted(set(range(len(self.members))) - missing)
            return {rank: json.loads(self._store.get(f"{what}/{rank}")) for rank in there}

    def put(self, what: str, mine: Any) -> None:
        """Say what this node has to say on ``what``, for whoever gathers it."""
        with self.asking():
            self._store.set(f"{what}/{self.rank}", json.dumps(mine))

    def agree(self, what: str, decide: Callable[[], Any], seconds: float, check: Callable[[], None]) -> Any:
        """What the leader decides on ``what``, on every node; None if there is no word of it in time."""
        if not self.many:
            return decide()
        end = self._clock() + seconds
        while self._clock() < end:
            with self.asking():
                if self._store.check([what]):
                    return json.loads(self._store.get(what))
                self._pulse()
            if self.leads:
                decision = decide()
                with self.asking():
                    # Two may think that they lead for a moment: the first word counts.
                    return json.loads(self._store.compare_set(what, "", json.dumps(decision)))
            check()
            time.sleep(0.05)
        return None

    def mark(self, what: str) -> None:
        """Note for all that this node has done ``what``."""
        if self.many:
            with self.asking():
                self._store.set(f"{what}/{self.rank}", "1")

    def all_marked(self, what: str) -> bool:
        """Whether every node that is not lost has done ``what``."""
        if not self.many:
            return True
        with self.asking():
            living = set(range(len(self.members))) - self.lost
            return bool(self._store.check([f"{what}/{rank}" for rank in sorted(living)]))

    def _pulse(self) -> None:
        now = self._clock()
        if now - self._pulsed_at < PULSE_SECONDS and self._heard:
            return
        # An agent that was stopped itself (Ctrl-Z, a suspended machine) has not seen the others' pulses.
        slept = now - self._pulsed_at > LOST_SECONDS / 2
        self._pulsed_at = now
        self._pulses += 1
        self._store.set(f"pulse/{self.rank}", json.dumps([self._pulses, self.status]))
        values = self._store.multi_get([f"pulse/{rank}" for rank in range(len(self.members))])
        self.statuses = {rank: json.loads(value)[1] for rank, value in enumerate(values) if rank != self.rank}
        for rank, value in enumerate(values):
            before, at = self._heard.get(rank, (b"", now))
            if value != before or slept:
                self._heard[rank] = (value, now)
            elif now - at > LOST_SECONDS and rank != self.rank:
                self.lost.add(rank)
