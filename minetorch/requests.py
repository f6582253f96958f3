"""What one rank asks of all: to save, to stop. Agreed on without holding up a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist

from minetorch.world import World

Request = Literal["save", "stop_after_epoch", "save_and_stop"]

KINDS: tuple[Request, ...] = ("save", "stop_after_epoch", "save_and_stop")

NOTHING: frozenset[Request] = frozenset()

EXCHANGE_EVERY_S = 0.05
"""Seconds between two exchanges. An exchange of two workers costs a tiny model's step half as much again."""


class Requests:
    """Requests of any rank, known to every rank at the same step.

    The ranks exchange their requests in the background of a step and read the outcome after it. How many
    steps pass before the next exchange is rank 0's to say, by its clock, and is part of the exchange. A world
    of one has nothing to exchange and grants a request at once.
    """

    def __init__(self, world: World, clock: Callable[[], float] = time.perf_counter) -> None:
        self._world = world
        self._clock = clock
        self._asked: set[Request] = set()
        self._steps_left = 1
        self._interval = 1
        self._exchanged_at = clock()
        self._work: dist.Work | None = None
        # One flag a kind, then the steps until the next exchange, which rank 0 alone fills in.
        self._message = torch.zeros(len(KINDS) + 1, dtype=torch.int32)

    def ask(self, request: Request) -> None:
        """Ask all ranks for something, from any one of them."""
        self._asked.add(request)

    def at_step(self) -> frozenset[Request]:
        """What all ranks agreed on since the last step. Every rank calls it after every optimizer step."""
        if self._world.size == 1:
            return self._take()
        if self._work is not None:
            return self._outcome()
        self._steps_left -= 1
        if self._steps_left <= 0:
            self._exchange()
        return NOTHING

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
            self._message[index] = kind in taken
        self._message[-1] = self._next_interval() if self._world.is_main else 0
        self._work = dist.all_reduce(self._message, dist.ReduceOp.MAX, async_op=True)

    def _next_interval(self) -> int:
        """Steps that fit in `EXCHANGE_EVERY_S`, as the last ones went; at most ten times as many as before."""
        now = self._clock()
        seconds_a_step = max((now - self._exchanged_at) / self._interval, 1e-6)
        self._exchanged_at = now
        self._interval = max(1, min(round(EXCHANGE_EVERY_S / seconds_a_step), 10 * self._interval))
        return self._interval

    def _outcome(self) -> frozenset[Request]:
        if self._work is None:
            return NOTHING
        self._work.wait()
        self._work = None
        *flags, self._steps_left = self._message.tolist()
        return frozenset(kind for kind, flag in zip(KINDS, flags, strict=True) if flag)
