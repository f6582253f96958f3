"""Takes the signals that ask the launcher to stop, and hands them over where it is safe to act on them."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

from minetorch_launch.errors import StoppedError
from minetorch_launch.forkserver import STOP_SIGNALS

if TYPE_CHECKING:
    from types import FrameType, TracebackType

__all__ = ["Stop"]


class Stop:
    """Counts the stop signals while it is entered. Use as a context manager.

    Until :meth:`defer` a signal raises at once: there are no workers yet. From then on whoever is at work looks
    at :attr:`signum` where it can stop in good order.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.times = 0
        self._deferred = False
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for signum in STOP_SIGNALS:
                before = signal.getsignal(signum)
                # Whoever started us with a signal ignored (nohup, a shell's "&") wants it ignored.
                if before not in (signal.SIG_IGN, None):
                    self._before[signum] = before
        self.hold()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def hold(self) -> None:
        """Set the handlers, again if need be: older versions of torch set their own with each start."""
        for signum in self._before:
            signal.signal(signum, self._take)

    def defer(self) -> None:
        """From now on only note signals."""
        self._deferred = True

    def check(self) -> None:
        """Act on a signal that was noted.

        Raises:
            StoppedError: if there was one.
        """
        if self.signum is not None:
            raise StoppedError(self.signum)

    def _take(self, signum: int, frame: FrameType | None) -> None:
        self.times += 1
        if self.signum is None:
            self.signum = signum
        if not self._deferred:
            raise StoppedError(signum)
