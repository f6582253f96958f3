"""What one rank asks of all: to save, to stop. Agreed on without holding up a step."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist

from minetorch.world import World

Request = Literal["save", "stop_after_epoch", "save_and_stop"]

KINDS: tuple[Request, ...] = ("save", "stop_after_epoch", "save_and_stop")


class Requests:
    """Requests of any rank, known to every rank at the same step.

    The ranks exchange their requests in the background of the next step and read the outcome after it. A
    world of one has nothing to exchange and grants a request at once.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked: set[Request] = set()
        self._flags = torch.zeros(len(KINDS), dtype=torch.int32)
        self._work: dist.Work | None = None

    def ask(self, request: Request) -> None:
        """Ask all ranks for something, from any one of them."""
        self._asked.add(request)

    def at_step(self) -> frozenset[Request]:
        """What all ranks agreed on since the last step. Every rank calls it after every optimizer step."""
        if self._world.size == 1:
            return self._take()
        agreed = self._outcome()
        self._exchange()
        return agreed

    def now(self) -> frozenset[Request]:
        """All that any rank has asked for up to now. Every rank calls it, and waits for the others."""
        if self._world.size == 1:
            return self._take()
        agreed = self._outcome()
        self._exchange()
        return agreed | self._outcome()

    def _take(self) -> frozenset[Request]:
        if not self._asked:
            return NOTHING
        taken = frozenset(self._asked)
        self._asked.clear()
        return taken

    def _exchange(self) -> None:
        taken = self._take()
        for index, kind in enumerate(KINDS):
            self._flags[index] = kind in taken
        self._work = dist.all_reduce(self._flags, dist.ReduceOp.MAX, async_op=True)

    def _outcome(self) -> frozenset[Request]:
        if self._work is None:
            return NOTHING
        self._work.wait()
        self._work = None
        flags = self._flags.tolist()
        return frozenset(kind for kind, flag in zip(KINDS, flags, strict=True) if flag) if any(flags) else NOTHING


NOTHING: frozenset[Request] = frozenset()
