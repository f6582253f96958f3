"""Takes the launcher's signals, and hands them over where it is safe to act on them.

====================  ===================================================================================
a stop                SIGINT, SIGTERM, SIGHUP: the workers are told to end, and the launch ends
a notice              ``--notice-signals``: the workers are told that they will have to stop soon, no more
a roll call           SIGQUIT: where is every rank? The launch goes on
====================  ===================================================================================
"""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minetorch_launch.errors import StoppedError
from minetorch_launch.forkserver import STOP_SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType, TracebackType

__all__ = ["Notice", "Signals"]


@dataclass(frozen=True)
class Notice:
    """A signal that tells the workers to stop soon."""

    signum: int
    told_all: bool
    """Whether its sender has told the workers itself."""


class Signals:
    """Notes the signals that come while it is entered. Use as a context manager.

    Until :meth:`defer` a stop raises at once: there are no workers yet. From then on whoever is at work looks
    at :attr:`stop` where it can stop in good order.

    Args:
        notices: signals to take as notices. One that is usually a stop is none then.
        told_all: tells by the sender's process id whether it has sent the same signal to the workers as well,
            as SLURM does with all processes of a job step. None where nobody does.
    """

    def __init__(self, notices: Iterable[int] = (), told_all: Callable[[int], bool] | None = None) -> None:
        self.stop: int | None = None
        """The first stop signal that came."""

        self.stops = 0
        """How many came."""

        self._notices = frozenset(notices)
        self._told_all = told_all
        self._noticed: list[Notice] = []
        self._roll_calls = 0
        self._deferred = False
        self._before: dict[int, signal._HANDLER] = {}
        self._mask: set[signal.Signals | int] | None = None

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for signum in {*STOP_SIGNALS, *self._notices, signal.SIGQUIT}:
                before = signal.getsignal(signum)
                # Whoever started us with a stop ignored (nohup, a script's "&") wants it ignored. A roll call ends
                # nothing, and is for a job in the background above all.
                if before is not None and (before is not signal.SIG_IGN or signum == signal.SIGQUIT):
                    self._before[signum] = before
        if self._told_all is not None:
            self._listen(self._told_all)
        self.hold()
        return self

    def _listen(self, told_all: Callable[[int], bool]) -> None:
        """Take notices in a thread: a handler is not told who has sent the signal."""
        mine = self._notices & set(self._before)
        for signum in mine:
            del self._before[signum]
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, mine)

        def wait() -> None:
            while True:
                came = signal.sigwaitinfo(mine)
                self._noticed.append(Notice(came.si_signo, told_all(came.si_pid)))

        if mine:
            threading.Thread(target=wait, name="minetorch-signals", daemon=True).start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self._mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def hold(self) -> None:
        """Set the handlers, again if need be: older versions of torch set their own with each start."""
        for signum in self._before:
            signal.signal(signum, self._take)

    def defer(self) -> None:
        """From now on only note stops."""
        self._deferred = True

    def check(self) -> None:
        """Act on a stop that was noted.

        Raises:
            StoppedError: if there was one.
        """
        if self.stop is not None:
            raise StoppedError(self.stop)

    def take_notices(self) -> list[Notice]:
        """The notices that came since this was last asked, in order."""
        taken, self._noticed = self._noticed, []
        return taken

    def take_roll_call(self) -> bool:
        """Whether a roll call was asked for since this was last asked."""
        taken, self._roll_calls = self._roll_calls, 0
        return taken > 0

    def _take(self, signum: int, frame: FrameType | None) -> None:
        if signum in self._notices:
            self._noticed.append(Notice(signum, told_all=False))
        elif signum == signal.SIGQUIT:
            self._roll_calls += 1
        else:
            self.stops += 1
            if self.stop is None:
                self.stop = signum
            if not self._deferred:
                raise StoppedError(signum)
