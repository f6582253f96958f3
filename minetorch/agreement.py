"""How ranks that never wait for one another agree on a step at which all do the same. Pure.

Ranks that train together are at different steps at any moment: by one where gradients pass through the CPU, by several
where a GPU's work is queued ahead. So a step that lies behind none of them cannot be guessed; it is found in a round:

1. Rank 0 has every rank promise not to pass a step: its *limit*, the one after the last that it has done.
2. Each answers with its limit, and with what it asks for.
3. The highest limit is the step. Rank 0 tells all, and what is to be done there.

A rank that has reached its limit waits for step 3, which depends on no rank's training. Where the ranks meet anyway (at
the end of an epoch) they do all that is asked for there, and what earlier rounds have decided for later is void.
"""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass
from typing import Literal

Request = Literal["save", "stop_after_epoch", "save_and_stop", "hear"]
"""`hear`: of a checkpoint that has become durable, or has not."""

KINDS: tuple[Request, ...] = ("save", "stop_after_epoch", "save_and_stop", "hear")

NOTHING: frozenset[Request] = frozenset()

NEVER = sys.maxsize


@dataclass(frozen=True)
class Answer:
    """A rank's part of a round."""

    round: int
    limit: int
    """The step that it will not pass before the round's decision."""
    kinds: frozenset[Request]
    """What it asks for, but for what is decided already."""


@dataclass(frozen=True)
class Decision:
    """What all ranks do, and right after which step."""

    round: int
    step: int
    kinds: frozenset[Request]


class Convener:
    """Rank 0's part: one round at a time."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._answers: dict[int, Answer] | None = None
        self.round = 0
        """The newest round, from 1."""

    @property
    def is_open(self) -> bool:
        """Whether a round has begun that is not decided yet."""
        return self._answers is not None

    def convene(self) -> bool:
        """Begin a round; not if one is open: who asks for something after its answer will ask again."""
        if self.is_open:
            return False
        self.round += 1
        self._answers = {}
        return True

    def take(self, rank: int, answer: Answer) -> Decision | None:
        """Take a rank's answer. The last one's gives the decision."""
        assert self._answers is not None
        self._answers[rank] = answer
        if len(self._answers) < self._size:
            return None
        answers, self._answers = self._answers.values(), None
        return Decision(
            self.round, max(answer.limit for answer in answers), NOTHING.union(*(answer.kinds for answer in answers))
        )


class Member:
    """Each rank's part, of rank 0 as well."""

    def __init__(self) -> None:
        self.asked: set[Request] = set()
        """What this rank asks for and has not got."""
        self.next = NEVER
        """The step after which there is something to do, or to wait for."""
        self._done = 0
        self._open = 0
        self._limit = NEVER
        self._decisions: deque[Decision] = deque()
        self._void = 0

    def ask(self, kind: Request) -> bool:
        """Ask for something. Returns whether a round is needed for it."""
        is_new = kind not in self.asked
        self.asked.add(kind)
        return is_new and kind not in self._decided()

    def answer(self, round: int) -> Answer:
        """Promise to pass no further step before the round's decision."""
        last = self._decisions[-1].step if self._decisions else 0
        self._open, self._limit = round, max(self._done, last) + 1
        self._look_ahead()
        return Answer(round, self._limit, frozenset(self.asked - self._decided()))

    def decided(self, decision: Decision) -> None:
        """The round is over."""
        if decision.round == self._open:
            self._limit = NEVER
        if decision.round > self._void:
            self._decisions.append(decision)
        self._look_ahead()

    def stepped(self) -> bool:
        """Count a step. Returns whether there is something to do after it, or to wait for."""
        self._done += 1
        return self._done >= self.next

    @property
    def must_wait(self) -> bool:
        """Whether the next step is one that this rank has promised not to take yet."""
        return self._done >= self._limit

    def take(self) -> frozenset[Request]:
        """What was decided for right after this step."""
        if not self._decisions or self._decisions[0].step > self._done:
            return NOTHING
        kinds = self._decisions.popleft().kinds
        self.asked -= kinds
        self._look_ahead()
        return kinds

    def met(self, round: int, kinds: frozenset[Request]) -> None:
        """All ranks have met and do `kinds`; what was decided up to `round` is void."""
        self._void = round
        self._decisions = deque(decision for decision in self._decisions if decision.round > round)
        self.asked -= kinds
        self._look_ahead()

    def _decided(self) -> frozenset[Request]:
        return NOTHING.union(*(decision.kinds for decision in self._decisions))

    def _look_ahead(self) -> None:
        self.next = min(self._limit, self._decisions[0].step if self._decisions else NEVER)
