"""Signals that ask a run to save and make way: taken while a Trainer starts or trains, and answered by its loop.

A batch system's notice, and the TERM of whoever stops a job, may reach any process of it at any time. The handler only
notes which signal it was; the loop finds the note between two steps, where all ranks agree to save and stop.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""SIGINT is not among them: it stays `KeyboardInterrupt`."""


class Notices:
    """The newest unanswered notice of this process.

    One for all Trainers of a process, since signals are the process's: a notice that came too late for one, which was
    about to end anyway, is there for the next.
    """

    signum: int = 0
    """The signal that was noted; 0 for none."""

    @contextmanager
    def noted(self) -> Iterator[None]:
        """A context in which a signal is noted in place of ending the process.

        Only in the main thread, where Python has signals handled, and only a signal that nobody else handles or
        ignores. Outside of it every signal does what it did before.
        """
        taken = [signum for signum in SIGNALS if _is_free(signum)] if _in_main_thread() else []
        if taken:
            _keep_from_children()
        for signum in taken:
            signal.signal(signum, self._note)
            # A library's system call need not know what to do when it is cut short.
            signal.siginterrupt(signum, False)
        try:
            yield
        finally:
            self._let_go(taken)

    def answered(self) -> None:
        """The notice has been obeyed."""
        self.signum = 0

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum

    def _let_go(self, signals: list[signal.Signals]) -> None:
        for signum in signals:
            if signal.getsignal(signum) == self._note:
                signal.signal(signum, signal.SIG_DFL)

    def _forget(self) -> None:
        self._let_go([*SIGNALS])
        self.answered()
        _lift()


NOTICES = Notices()
"""This process's."""


def describe(signals: Sequence[int]) -> str:
    """Each rank's signal (0: none) in words: "SIGTERM on ranks 0, 2"."""
    parts = []
    for signum in sorted({*signals} - {0}):
        ranks = [str(rank) for rank, own in enumerate(signals) if own == signum]
        parts.append(f"{signal.Signals(signum).name} on rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)}")
    return " and ".join(parts)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _is_free(signum: signal.Signals) -> bool:
    """Whether a signal does what it does by default, by what Python and the system know."""
    if signal.getsignal(signum) is not signal.SIG_DFL:
        return False
    with suppress(OSError, StopIteration, ValueError):
        # Python does not see handlers that were set in C, such as those of faulthandler.register().
        status = Path("/proc/self/status").read_text().splitlines()
        caught = int(next(line for line in status if line.startswith("SigCgt:")).split()[1], 16)
        return not caught >> (signum - 1) & 1
    return True


_held = threading.local()


def _hold() -> None:
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _lift() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


@functools.cache
def _keep_from_children() -> None:
    """Let forked children die of these signals, from their first moment on: it is how a pool of processes is ended."""
    os.register_at_fork(before=_hold, after_in_parent=_lift, after_in_child=NOTICES._forget)
