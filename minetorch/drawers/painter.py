"""Paints pictures in a process of its own: Matplotlib would hold the training's interpreter up for 0.1 s each.

Each drawing has its own process, which imports Matplotlib and NumPy, not torch, and paints with a low priority. It
reads and writes files, not pipes: a DataLoader worker that is forked meanwhile would hold a pipe open.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minetorch.drawers.thin import Thin

    Picture = tuple[str, Mapping[str, Thin], Mapping[str, Any]]
    """The arguments of `picture.paint`: the graph, its curves and the options."""

NICENESS = 5
"""Lower than the training, but not so low that it would never have its turn beside busy DataLoader workers."""

_LONGEST_S = 60.0
_LOOK_S = 0.2

# The parent's own path: it may have found this package in a way that a new interpreter would not. One thread, as
# the libraries under NumPy would else make one for each core.
_START = "import sys; sys.path[:] = sys.argv[1:]; from minetorch.drawers.painter import paint_all; paint_all()"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class PainterLostError(Exception):
    """The process could not be started, has died, or does not answer."""


def paint_apart(pictures: Sequence[Picture], *, give_up: Callable[[], bool]) -> list[bytes]:
    """The pictures as PNG files, painted by another process.

    Args:
        pictures: what to paint.
        give_up: asked again and again while the process paints; once it returns True, nobody waits any longer.

    Raises:
        PainterLostError: there is no process to paint them, or it was given up.
        RuntimeError: one of them cannot be painted.
    """
    try:
        with tempfile.TemporaryFile() as wanted, tempfile.TemporaryFile() as painted:
            pickle.dump(pictures, wanted)
            wanted.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-c", _START, *sys.path],
                stdin=wanted,
                stdout=painted,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **_ONE_THREAD},
                start_new_session=True,  # Ctrl-C is the parent's, which has its last pictures to draw
            )
            _wait(process, give_up)
            painted.seek(0)
            found, error = pickle.load(painted)
    except (OSError, EOFError) as lost:
        raise PainterLostError(str(lost)) from lost
    if error:
        raise RuntimeError(error)
    return list(found)


def _wait(process: subprocess.Popen[bytes], give_up: Callable[[], bool]) -> None:
    end = time.monotonic() + _LONGEST_S
    try:
        while process.poll() is None:
            if give_up() or time.monotonic() > end:
                raise TimeoutError(f"no picture after {_LONGEST_S:.0f} s")
            time.sleep(_LOOK_S)
    finally:
        process.kill()
        process.wait()


def paint_all() -> None:
    """The process itself: paint what its input asks for."""
    os.nice(NICENESS)
    from minetorch.drawers.picture import paint

    found, error = [], ""
    try:
        for graph, curves, options in pickle.load(sys.stdin.buffer):
            found.append(paint(graph, curves, **options))
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
    pickle.dump((found, error), sys.stdout.buffer)
