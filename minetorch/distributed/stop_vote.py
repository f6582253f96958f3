"""Lets ranks agree on the step after which all of them save or stop.

Any rank may ask at any moment. Every few steps all ranks exchange what was asked for in one small collective on the
CPU, and all do it right after that step. No collective is pending between two votes: a pending one would keep a rank
that has failed from exiting until every other rank had come to it.

The number of steps between two votes is agreed on in the vote itself, from the slowest rank's time for a step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import torch
import torch.distributed as dist

from minetorch.distributed.world import World
from minetorch.errors import LostRankError

Request = Literal["save", "stop_after_epoch", "save_and_stop", "poll_saves"]
"""`poll_saves`: run the hooks for finished saves, or raise the error of a failed one, on every rank."""

KINDS: tuple[Request, ...] = ("save", "stop_after_epoch", "save_and_stop", "poll_saves")

NOTHING: frozenset[Request] = frozenset()

INTERVAL_S = 0.25
"""About the time from one vote to the next, where a step is shorter."""

MOST_STEPS = 16
"""Steps from one vote to the next, at most: steps may suddenly take much longer than those that were measured."""

_LOOK_S = 1.0
"""Seconds from one look at the store to the next, during a validation."""

_STOP_KEY = "minetorch/stop"


class StopVote:
    """Requests of any rank, granted on every rank after the same step.

    A world of one has nothing to agree on and grants a request at once.
    """

    def __init__(self, world: World, must_stop: Callable[[], bool] = lambda: False) -> None:
        """Begin with no request.

        Args:
            world: all ranks.
            must_stop: whether to ask all to save and stop; called after each step, so it must be quick.
        """
        self._world = world
        self._must_stop = must_stop
        self._lock = threading.Lock()
        self._asked: set[Request] = set()
        self._stop_is_announced = False
        self._looked_at = float("-inf")
        self._stride = 1
        self._steps = 0
        self._voted_at = time.monotonic()

    def ask(self, request: Request) -> None:
        """Ask all ranks for something. Any rank and any thread may call it."""
        with self._lock:
            self._asked.add(request)

    def at_step(self) -> frozenset[Request]:
        """What all ranks do right after this step. Every rank calls it after every optimizer step.

        Raises:
            LostRankError: a rank is gone.
        """
        if self._world.size == 1:
            return self.now()
        self._steps += 1
        return self.now() if self._steps >= self._stride else NOTHING

    def now(self) -> frozenset[Request]:
        """All that any rank has asked for up to now. Every rank calls it, and waits for the others.

        Raises:
            LostRankError: a rank is gone.
        """
        if self._must_stop():
            self.ask("save_and_stop")
        if self._world.size == 1 and not self._asked:
            return NOTHING
        with self._lock:
            asked = frozenset(self._asked)
        granted = asked if self._world.size == 1 else self._vote(asked)
        with self._lock:
            self._asked -= granted
        return granted

    def stop_is_wanted(self) -> bool:
        """Whether any rank is known to ask for `save_and_stop`. Quick enough for each iteration of a validation.

        No collective: ranks learn of it at different iterations, through the store of the process group.
        """
        if self._must_stop():
            self.ask("save_and_stop")
        wanted = "save_and_stop" in self._asked
        if self._world.size == 1 or self._stop_is_announced:
            return wanted or self._stop_is_announced
        now = time.monotonic()
        if wanted:
            _store().set(_STOP_KEY, "1")
            self._stop_is_announced = True
        elif now - self._looked_at >= _LOOK_S:
            self._looked_at = now
            self._stop_is_announced = _store().check([_STOP_KEY])
        return self._stop_is_announced

    def close(self) -> None:
        """Forget every request. Every rank has left its validation by now."""
        self._asked.clear()
        if self._stop_is_announced:
            self._stop_is_announced = False
            with suppress(RuntimeError):  # its process may be gone
                _store().delete_key(_STOP_KEY)

    def _vote(self, asked: frozenset[Request]) -> frozenset[Request]:
        step_us = int((time.monotonic() - self._voted_at) * 1e6) // max(1, self._steps)
        message = torch.tensor([*(kind in asked for kind in KINDS), step_us], dtype=torch.int64)
        try:
            dist.all_reduce(message, dist.ReduceOp.MAX)
        except RuntimeError as error:
            raise LostRankError(f"Another rank is gone: {error}") from error
        *flags, step_us = message.tolist()
        if self._steps:
            self._stride = max(1, min(MOST_STEPS, 2 * self._stride, int(INTERVAL_S * 1e6) // max(1, step_us)))
        self._steps, self._voted_at = 0, time.monotonic()
        return frozenset(kind for kind, flag in zip(KINDS, flags, strict=True) if flag)


def _store() -> Any:
    """The key-value store through which the ranks made their process group."""
    assert dist.group.WORLD is not None
    return dist.group.WORLD.get_group_store()
