"""The signals that the launcher takes.

====================  ===================================================================================
stop                  SIGINT, SIGTERM, SIGHUP: the workers are asked to end, and the launch ends
preemption warning    ``--preempt-signals``: the workers are warned that they have to stop soon
stack request         SIGQUIT: the launcher shows where every rank is, and the launch goes on
====================  ===================================================================================
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Stop:
    """A stop signal."""

    signum: int


@dataclass(frozen=True)
class Preemption:
    """A preemption warning."""

    signum: int
    reached_workers: bool = False
    """The sender has sent it to the workers itself."""


@dataclass(frozen=True)
class StackRequest:
    """A request to show where every rank is."""


class StopSignals:
    """Hands the signals over to ``post`` while it is entered. For the main thread, inside a running event loop.

    Args:
        post: called with a `Stop`, a `Preemption` or a `StackRequest`.
        preempt_signals: the signals that are preemption warnings. A stop signal among them stops nothing then.
        reached_workers: tells by the sender's process id whether it has sent the same signal to the workers as well, as
            SLURM does with all processes of a job step. None where nobody does.
    """

    def __init__(
        self,
        post: Callable[[Stop | Preemption | StackRequest], None],
        preempt_signals: Collection[int] = (),
        reached_workers: Callable[[int], bool] | None = None,
    ) -> None:
        self._post, self._preempt_signals = post, frozenset(preempt_signals)
        self._reached_workers = reached_workers
        self._taken: list[int] = []
        self._polled: set[int] = set()
        self._mask: set[int] | None = None

    def __enter__(self) -> StopSignals:
        loop = asyncio.get_running_loop()
        for signum in {*STOP_SIGNALS, *self._preempt_signals, signal.SIGQUIT}:
            # A launcher that was started with a stop ignored (nohup, a script's "&") ignores it. A stack request ends
            # nothing, and is for jobs in the background above all.
            if signal.getsignal(signum) is signal.SIG_IGN and signum != signal.SIGQUIT:
                continue
            if self._reached_workers is not None and signum in self._preempt_signals:
                self._polled.add(signum)
            else:
                loop.add_signal_handler(signum, self._take, signum)
                self._taken.append(signum)
        if self._polled:
            self._mask = set(signal.pthread_sigmask(signal.SIG_BLOCK, self._polled))
        return self

    def __exit__(self, *_: object) -> None:
        for signum in self._taken:
            asyncio.get_running_loop().remove_signal_handler(signum)
        for signum in self._preempt_signals:
            signal.signal(signum, signal.SIG_IGN)  # one that comes, or came, too late must not kill this process
        if self._mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def poll(self) -> None:
        """Take the signals whose sender matters: a handler is not told who has sent one. Call it twice a second."""
        while self._polled and (came := signal.sigtimedwait(self._polled, 0)) is not None:
            assert self._reached_workers is not None
            self._post(Preemption(came.si_signo, self._reached_workers(came.si_pid)))

    def _take(self, signum: int) -> None:
        if signum in self._preempt_signals:
            self._post(Preemption(signum))
        elif signum == signal.SIGQUIT:
            self._post(StackRequest())
        else:
            self._post(Stop(signum))
