"""Draws `graph/<name>.png` with Matplotlib, off the training thread."""

from __future__ import annotations

import atexit
import importlib.util
import threading
import time
from typing import TYPE_CHECKING

from minetorch.drawers.curves import Curves
from minetorch.drawers.drawer import Drawer
from minetorch.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from minetorch.drawers.drawer import RunStore

# Matplotlib holds the interpreter's lock while it draws, so that a picture costs the training thread
# up to the time that it takes. Drawing at most this share of the time bounds that cost, up to the
# longest wait: who looks at many graphs would rather pay than see old ones.
_SHARE_OF_TIME = 0.01
_LONGEST_WAIT_S = 60.0


class MatplotlibDrawer(Drawer):
    """One PNG per graph, drawn anew after a flush if the graph has changed.

    A thread draws, at most every `interval_s` seconds, and less often where drawing is slow (a picture
    takes about 0.1 s of computing, so that one graph is drawn every 10 s or so); `close` draws what is
    left. An error of the thread is raised by the next `flush` or `close`, and what it could not draw is
    drawn later.
    """

    def __init__(self, *, interval_s: float = 3.0, cpu_clock: Callable[[], float] = time.thread_time) -> None:
        """Make a drawer for one run.

        Args:
            interval_s: seconds from one drawing to the next, at least; 0 to draw at every flush.
            cpu_clock: the seconds that the calling thread has computed: a slow storage is no cost.

        Raises:
            ConfigurationError: Matplotlib is not installed.
        """
        if importlib.util.find_spec("matplotlib") is None:
            raise ConfigurationError("drawer='matplotlib' needs Matplotlib: pip install matplotlib")
        self._interval_s = interval_s
        self._cpu_clock = cpu_clock
        self._store: RunStore | None = None
        self._code = ""
        self._curves = Curves()
        self._changed: set[str] = set()  # since the last flush
        self._thread: threading.Thread | None = None
        # The four below are shared with the thread, and so are changed under the lock only.
        self._lock = threading.Condition()
        self._flushed: set[str] = set()  # to be drawn
        self._error: Exception | None = None
        self._closing = False

    def bind(self, store: RunStore, code: str) -> None:
        """Draw below `graph/` of this store."""
        self._store, self._code = store, code

    def scalars(self, values: Mapping[str, float], graph: str, x: float) -> None:
        """Remember a point of some curves; nothing is drawn yet."""
        with self._lock:
            for name, y in values.items():
                self._curves.add(graph, name, x, y)
        self._changed.add(graph)

    def name_x(self, graph: str, name: str) -> None:
        """Take the name of the x axis."""
        with self._lock:
            self._curves.name_x(graph, name)
        self._changed.add(graph)

    def restore(self, curves: Curves) -> None:
        """Draw these points from now on; the pictures change at the next flush."""
        mine = curves.copy()
        with self._lock:
            self._curves = mine
            self._flushed.clear()
        self._changed = set(mine)

    def flush(self) -> None:
        """Have the thread draw the graphs that changed, and return at once."""
        from minetorch.drawers.picture import load_matplotlib

        if self._changed and self._thread is None:
            load_matplotlib()
            self._start()
        with self._lock:
            self._flushed |= self._changed
            self._changed.clear()
            self._lock.notify()
        self._raise_error()

    def close(self) -> None:
        """Stop the thread, and draw what it has not."""
        self._stop()
        self._error = None  # what it failed at is tried again here
        self._flushed |= self._changed
        self._changed.clear()
        self._draw_flushed()

    def _start(self) -> None:
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="minetorch-drawer", daemon=True)
        self._thread.start()
        # A daemon, so that a script that forgets to close can end; but one that is still inside
        # Matplotlib's C code when the interpreter goes down would crash it.
        atexit.register(self._stop)

    def _stop(self) -> None:
        if self._thread is None:
            return
        with self._lock:
            self._closing = True
            self._lock.notify()
        self._thread.join()
        self._thread = None
        atexit.unregister(self._stop)

    def _run(self) -> None:
        wait_s = 0.0
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closing, timeout=wait_s)
                self._lock.wait_for(lambda: self._closing or self._flushed)
                if self._closing:
                    return
            start = self._cpu_clock()
            try:
                self._draw_flushed()
            except Exception as error:
                with self._lock:
                    self._error = error
            wait_s = self._wait_s(self._cpu_clock() - start)

    def _wait_s(self, cost_s: float) -> float:
        """Seconds to let pass after a drawing that took `cost_s`; `interval_s=0` asks for none."""
        if self._interval_s == 0:
            return 0.0
        return max(self._interval_s, min(cost_s / _SHARE_OF_TIME, _LONGEST_WAIT_S))

    def _draw_flushed(self) -> None:
        """Draw each flushed graph as it is now."""
        from minetorch.drawers.picture import render

        while True:
            with self._lock:
                if not self._flushed:
                    return
                graph = min(self._flushed)
                curves = {name: curve.to_numpy() for name, curve in self._curves[graph].items()}
                x_name = self._curves.x_name(graph)
                self._flushed.discard(graph)
            assert self._store is not None, "bind comes before anything else"
            try:
                self._store.write(f"graph/{graph}.png", render(graph, curves, x_name=x_name, code=self._code))
            except Exception:
                with self._lock:
                    if graph in self._curves:
                        self._flushed.add(graph)
                raise

    def _raise_error(self) -> None:
        with self._lock:
            error, self._error = self._error, None
        if error is not None:
            raise error
