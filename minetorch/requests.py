"""What one rank asks of all: to save, to stop. Agreed on without holding up a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist

from minetorch.world import World

Request = Literal["save", "stop_after_epoch", "save_and_stop", "hear"]
"""`hear`: of a checkpoint that has become durable, or has not."""

KINDS: tuple[Request, ...] = ("save", "stop_after_epoch", "save_and_stop", "hear")

NOTHING: frozenset[Request] = frozenset()

EXCHANGE_EVERY_S = 0.05
"""Seconds from one exchange to the next; an exchange of two workers takes about 0.1 ms."""


class Requests:
    """Requests of any rank, known to every rank at the same step.

    Now and then, right after a step that has brought the ranks together anyway, they exchange what was asked.
    How many steps pass before the next exchange is rank 0's to say, by its clock, and is part of the exchange.
    A world of one has nothing to exchange and grants a request at once.

    The exchange is not left to the background: a rank that fails while it is under way could not exit before
    all the others have come to it, which they never do, waiting for that rank elsewhere.
    """

    def __init__(
        self,
        world: World,
        must_stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Ask for nothing yet, but to save and stop whenever `must_stop` says so."""
        self._world = world
        self._must_stop = must_stop
        self._clock = clock
        self._asked: set[Request] = set()
        self._interval = 1
        self._steps = 0
        self._exchanged_at = clock()

    def ask(self, request: Request) -> None:
        """Ask all ranks for something, from any one of them."""
        self._asked.add(request)

    def at_step(self) -> frozenset[Request]:
        """What all ranks agree on now, if this is a step to do so. Every rank calls it after every optimizer step."""
        if self._world.size == 1:
            return self._take()
        self._steps += 1
        return self._exchange() if self._steps >= self._interval else NOTHING

    def now(self) -> frozenset[Request]:
        """All that any rank has asked for up to now. Every rank calls it, and waits for the others."""
        return self._take() if self._world.size == 1 else self._exchange()

    def _take(self) -> frozenset[Request]:
        if self._must_stop():
            self.ask("save_and_stop")
        if not self._asked:
            return NOTHING
        taken = frozenset(self._asked)
        self._asked.clear()
        return taken

    def _exchange(self) -> frozenset[Request]:
        taken = self._take()
        interval = self._next_interval() if self._world.is_main else 0
        message = torch.tensor([*(kind in taken for kind in KINDS), interval], dtype=torch.int32)
        dist.all_reduce(message, dist.ReduceOp.MAX)
        *flags, self._interval = message.tolist()
        self._steps = 0
        return frozenset(kind for kind, flag in zip(KINDS, flags, strict=True) if flag)

    def _next_interval(self) -> int:
        """Steps that fit in `EXCHANGE_EVERY_S`, as the last ones went; at most ten times as many as before."""
        now = self._clock()
        seconds = max(now - self._exchanged_at, 1e-6)
        self._exchanged_at = now
        fitting = round(EXCHANGE_EVERY_S * self._steps / seconds)
        return max(1, min(fitting, 10 * self._interval))
