"""Lets ranks agree on the step after which all of them save or stop.

Any rank can make a request at any time. Every few steps, all ranks exchange their requests in one small collective on
the CPU, and carry them out right after that step. Between two votes, no collective is pending. A pending one would keep
a failed rank from exiting until all other ranks had joined it.

The vote also decides the number of steps until the next vote, from the slowest rank's time for a step.
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
"""The approximate time between two votes, if a step is shorter."""

MOST_STEPS = 16
"""Maximum number of steps between two votes, since later steps may take much longer than the measured ones."""

_LOOK_S = 1.0
"""Seconds between two reads of the store, during a validation."""

_STOP_KEY = "minetorch/stop"


class StopVote:
    """Collects the requests of all ranks, and grants them on every rank after the same step.

    A single worker grants a request at once.
    """

    def __init__(self, world: World, must_stop: Callable[[], bool] = lambda: False) -> None:
        """Begin with no request.

        Args:
            world: all ranks.
            must_stop: returns whether to ask all ranks to save and stop. It is called after each step, so it must be
                fast.
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
        """Make a request to all ranks. Any rank and any thread can call it."""
        with self._lock:
            self._asked.add(request)

    def at_step(self) -> frozenset[Request]:
        """The requests to carry out right after this step. Every rank calls it after each optimizer step.

        Raises:
            LostRankError: a rank is gone.
        """
        if self._world.size == 1:
            return self.now()
        self._steps += 1
        return self.now() if self._steps >= self._stride else NOTHING

    def now(self) -> frozenset[Request]:
        """The requests of all ranks so far. Every rank calls it, and waits for the others.

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
        """Whether any rank has requested `save_and_stop`. Fast enough for each iteration of a validation.

        It uses the store of the process group, not a collective, so ranks see the request at different iterations.
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
        """Forget all requests. All ranks have left the validation by now."""
        self._asked.clear()
        if self._stop_is_announced:
            self._stop_is_announced = False
            with suppress(RuntimeError):  # the store's process may be gone
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
    """The key-value store of the process group."""
    assert dist.group.WORLD is not None
    return dist.group.WORLD.get_group_store()
