"""A process of its own that paints pictures: Matplotlib would hold the training's interpreter up for 0.1 s each.

It imports Matplotlib and NumPy, not torch, takes about 60 MB, and paints with a low priority. It ends when its
parent closes the pipe, however that comes about.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from minetorch.drawers.thin import Thin

_LOOK_S = 5.0
"""Seconds from one look of the process whether its parent is still there to the next."""

_LONGEST_PICTURE_S = 60.0
_PATIENCE_S = 0.2
_MOST_LOSSES = 3

NICENESS = 5
"""Lower than the training, but not so low that it would never have its turn beside busy DataLoader workers."""

# The parent's own path: it may have found this package in a way that a new interpreter would not. One thread, as
# the libraries under NumPy would else make one for each core.
_START = "import sys; fd, parent, *sys.path = sys.argv[1:]; "
_START += "from minetorch.drawers.painter import serve; serve(int(fd), int(parent))"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class PainterLostError(Exception):
    """The process has ended, could not be started, or does not answer."""


class Painter:
    """The parent's side. Used by one thread at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None
        self._losses = 0

    @property
    def is_usable(self) -> bool:
        """Whether a process may still be had: it was not lost again and again."""
        return self._losses < _MOST_LOSSES and bool(sys.executable)

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        return None if self._process is None else self._process.pid

    def paint(self, graph: str, curves: Mapping[str, Thin], *, give_up: Callable[[], bool], **options: Any) -> bytes:
        """What `picture.paint` returns.

        Args:
            graph: as there.
            curves: as there.
            give_up: asked again and again while the process paints; where it says so, nobody waits any longer.
            options: as there.

        Raises:
            PainterLostError: there is no process to paint it, or it was given up; the next call starts another.
            RuntimeError: it cannot be painted.
        """
        try:
            connection = self._connect()
            connection.send((graph, dict(curves), options))
            end = time.monotonic() + _LONGEST_PICTURE_S
            while not connection.poll(_PATIENCE_S):
                if give_up() or time.monotonic() > end:
                    raise TimeoutError(f"no picture after {_LONGEST_PICTURE_S:.0f} s")
            picture, error = connection.recv()
        except (EOFError, OSError) as lost:
            self._losses += 1
            self.close()
            raise PainterLostError(str(lost)) from lost
        if error:
            raise RuntimeError(error)
        return bytes(picture)

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        if process is not None:
            process.kill()  # it holds nothing that could be spoilt
            process.wait()

    def _connect(self) -> Connection[Any, Any]:
        if self._connection is None:
            ours, theirs = Pipe()
            try:
                fd = theirs.fileno()
                command = [sys.executable, "-c", _START, str(fd), str(os.getpid()), *sys.path]
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[fd],
                    env={**os.environ, **_ONE_THREAD},
                )
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
            self._connection = ours
        return self._connection


def serve(fd: int, parent: int) -> None:
    """The process itself: paint what comes until the parent is gone."""
    # As DataLoader workers: a signal to the whole group is the parent's, which has its last pictures to draw.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        os.nice(NICENESS)
    from minetorch.drawers.picture import load_matplotlib, paint

    load_matplotlib()
    with Connection(fd) as connection, suppress(EOFError, OSError):
        while True:
            # A process that the parent forked holds the pipe open, too.
            while not connection.poll(_LOOK_S):
                if os.getppid() != parent:
                    return
            graph, curves, options = connection.recv()
            try:
                answer: tuple[bytes, str] = paint(graph, curves, **options), ""
            except Exception as error:
                answer = b"", f"{type(error).__name__}: {error}"
            connection.send(answer)
