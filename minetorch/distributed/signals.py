"""Signals that ask a run to save and stop. A Trainer handles them while it starts or trains.

A preemption warning of a scheduler, or a SIGTERM to stop the job, can reach any process of the job at any time. The
handler only records the signal. The loop reads it between two steps, where all ranks agree to save and stop.
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
"""Without SIGINT, which raises `KeyboardInterrupt` as usual."""


class Notices:
    """The newest signal to this process that no Trainer has answered.

    All Trainers of a process share it, since a signal goes to the process. If a signal comes when one Trainer is about
    to end, the next Trainer answers it.
    """

    signum: int = 0
    """The recorded signal; 0 for none."""

    @contextmanager
    def noted(self) -> Iterator[None]:
        """A context in which a signal is recorded instead of ending the process.

        It works only in the main thread, where Python can set handlers, and only for a signal that nobody else handles
        or ignores. At its end, the signals have their previous effects again.
        """
        taken = [signum for signum in SIGNALS if _is_free(signum)] if _in_main_thread() else []
        if taken:
            _keep_from_children()
        for signum in taken:
            signal.signal(signum, self._note)
            # Restart an interrupted system call: a library may not expect EINTR.
            signal.siginterrupt(signum, False)
        try:
            yield
        finally:
            self._let_go(taken)

    def answered(self) -> None:
        """Forget the signal, because the run has obeyed it."""
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
"""The recorded signal of this process."""


def describe(signals: Sequence[int]) -> str:
    """The ranks' signals (0: none) in words: "SIGTERM on ranks 0, 2"."""
    parts = []
    for signum in sorted({*signals} - {0}):
        ranks = [str(rank) for rank, own in enumerate(signals) if own == signum]
        parts.append(f"{signal.Signals(signum).name} on rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)}")
    return " and ".join(parts)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _is_free(signum: signal.Signals) -> bool:
    """Whether the signal has its default effect, as far as Python and the system know."""
    if signal.getsignal(signum) is not signal.SIG_DFL:
        return False
    with suppress(OSError, StopIteration, ValueError):
        # Python does not know handlers that C code has set, such as faulthandler.register().
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
    """Give forked children the default effects from the start, since process pools end their workers by signal."""
    os.register_at_fork(before=_hold, after_in_parent=_lift, after_in_child=NOTICES._forget)
