"""What one rank asks of all: to save, to stop. Agreed on without holding up a step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from minetorch.agreement import KINDS, NOTHING, Answer, Convener, Decision, Member, Request
from minetorch.errors import LostRankError
from minetorch.lines import Lines, Words
from minetorch.world import World


class Requests:
    """Requests of any rank, granted on every rank after the same step.

    A step costs a look at a number. Only when a rank has asked for something do threads of all ranks agree on the
    step, as `agreement` tells; the training waits for them if it comes to its limit before, which takes them less than
    a millisecond. A world of one has nothing to agree on and grants a request at once.
    """

    def __init__(self, world: World, must_stop: Callable[[], bool] = lambda: False) -> None:
        """Ask for nothing yet.

        Args:
            world: all ranks.
            must_stop: whether to ask all to save and stop; looked at after each step, so it must be quick.
        """
        self._world = world
        self._must_stop = must_stop
        self._member = Member()
        self._convener = Convener(world.size) if world.is_main else None
        self._lines: Lines | None = None
        self._changed = threading.Condition()
        self._stop_is_wanted = False
        self._lost: int | None = None

    def connect(self) -> None:
        """Be ready for `at_step`. Every rank calls it.

        Raises:
            CollectiveError: a rank cannot reach rank 0.
        """
        if self._world.size > 1 and self._lines is None:
            self._lines = Lines.connect(self._world)
            self._lines.listen(self._hear, self._lose)
            with self._changed:
                self._ask_again()

    def close(self) -> None:
        """Let go of the lines. Nothing is asked or granted any more."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def ask(self, request: Request) -> None:
        """Ask all ranks for something, from any one of them, in any thread."""
        with self._changed:
            if self._member.ask(request) and self._world.size > 1:
                self._call_for_round(stop=request == "save_and_stop")

    @property
    def stop_is_wanted(self) -> bool:
        """Whether all will be asked to save and stop, as far as this rank knows."""
        if self._must_stop():
            self.ask("save_and_stop")
        return self._stop_is_wanted or "save_and_stop" in self._member.asked

    def at_step(self) -> frozenset[Request]:
        """What all ranks do right after this step. Every rank calls it after every optimizer step.

        Raises:
            LostRankError: a rank is gone, without which the others cannot go on.
        """
        if self._must_stop():
            self.ask("save_and_stop")
        if self._world.size == 1:
            return self._take_all()
        with self._changed:
            if not self._member.stepped():
                return NOTHING
            self._wait_while(lambda: self._member.must_wait)
            taken = self._member.take()
            self._ask_again()
            return taken

    def now(self) -> frozenset[Request]:
        """All that any rank has asked for up to now. Every rank calls it, and waits for the others.

        Raises:
            LostRankError: a rank is gone, without which the others cannot go on.
        """
        if self._must_stop():
            self.ask("save_and_stop")
        if self._world.size == 1:
            return self._take_all()
        with self._changed:
            round = 0
            if self._convener is not None:
                # Others may be waiting for its decision before they can come here.
                self._wait_while(lambda: self._convener is not None and self._convener.is_open)
                round = self._convener.round
            asked = frozenset(self._member.asked)
        message = torch.tensor([*(kind in asked for kind in KINDS), round], dtype=torch.int64)
        dist.all_reduce(message, dist.ReduceOp.MAX)
        *flags, round = message.tolist()
        kinds = frozenset(kind for kind, flag in zip(KINDS, flags, strict=True) if flag)
        with self._changed:
            self._member.met(round, kinds)
            self._ask_again()
        return kinds

    def _take_all(self) -> frozenset[Request]:
        if not self._member.asked:
            return NOTHING
        with self._changed:
            taken = frozenset(self._member.asked)
            self._member.asked.clear()
        return taken

    def _wait_while(self, condition: Callable[[], bool]) -> None:
        while condition():
            if self._lost is not None:
                raise LostRankError(f"Rank {self._lost} is gone: Connection closed by peer")
            self._changed.wait()

    def _ask_again(self) -> None:
        """For what was asked while a round was already open."""
        if self._member.asked:
            self._call_for_round(stop=False)

    def _call_for_round(self, *, stop: bool) -> None:
        if self._convener is not None:
            self._convene(stop=stop)
        elif self._lines is not None:
            self._lines.tell(0, {"say": "convene", "stop": stop})

    # What comes over the lines, on their thread.

    def _hear(self, rank: int, words: Words) -> None:
        with self._changed:
            self._obey(rank, words)
            self._changed.notify_all()

    def _obey(self, rank: int, words: Words) -> None:
        say = words["say"]
        if say == "convene":
            self._convene(stop=words["stop"])
        elif say == "stop":
            self._stop_is_wanted = True
        elif say == "round":
            self._tell(0, "answer", self._member.answer(words["round"]))
        elif say == "answer":
            self._take_answer(rank, Answer(**_kinds_from(words)))
        elif say == "decision":
            self._member.decided(Decision(**_kinds_from(words)))
        else:
            self._lost = words["rank"]

    def _lose(self, rank: int) -> None:
        with self._changed:
            self._lost = rank
            if self._lines is not None:
                self._lines.tell_all({"say": "lost", "rank": rank})
            self._changed.notify_all()

    # Rank 0's part.

    def _convene(self, *, stop: bool) -> None:
        if self._convener is None or self._lines is None:
            return
        if stop and not self._stop_is_wanted:
            self._stop_is_wanted = True
            self._lines.tell_all({"say": "stop"})
        if self._convener.convene():
            self._lines.tell_all({"say": "round", "round": self._convener.round})
            self._take_answer(0, self._member.answer(self._convener.round))

    def _take_answer(self, rank: int, answer: Answer) -> None:
        assert self._convener is not None
        decision = self._convener.take(rank, answer)
        if decision is not None:
            self._member.decided(decision)
            assert self._lines is not None
            for other in range(1, self._world.size):
                self._tell(other, "decision", decision)

    def _tell(self, rank: int, say: str, part: Answer | Decision) -> None:
        if self._lines is not None:
            self._lines.tell(rank, {**vars(part), "say": say, "kinds": sorted(part.kinds)})


def _kinds_from(words: Words) -> dict[str, Any]:
    """The fields of an answer or a decision."""
    return {**{name: value for name, value in words.items() if name != "say"}, "kinds": frozenset(words["kinds"])}
