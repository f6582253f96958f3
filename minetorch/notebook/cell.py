"""Shows a run in the output of a notebook's cell. For the process that is the notebook's kernel."""

from __future__ import annotations

import atexit
import contextvars
import threading
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from minetorch.notebook.page import Page

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from minetorch.console.bars import NotebookBar
    from minetorch.console.figures import Figures

INTERVAL_S = 0.25
"""Seconds from one renewal to the next, at least."""
GRAPHS = 8
"""Graphs that are shown; the others are in the run's folder."""


class CellView:
    """One page, one bar and one picture per graph, each renewed in place by a thread of its own."""

    def __init__(self, make_bar: Callable[[], NotebookBar] | None) -> None:
        """Nothing is shown before there is something to show.

        Args:
            make_bar: makes what shows the progress; None to show it on the page.
        """
        self._make_bar = make_bar
        self._bar: NotebookBar | None = None
        self._cell: object = None
        self._thread: threading.Thread | None = None
        self._closing = False
        self._events: Any = None
        # What the thread shares with the others, under the lock.
        self._lock = threading.Condition()
        # Held while something is shown, before that lock.
        self._showing = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._page = Page()
        self._handles: dict[str, Any] = {}
        self._graphs: dict[str, bytes] = {}
        self._shown: set[str] = set()
        self._figures: Figures | None = None
        self._page_changed = False

    def here(self) -> None:
        """From now on show in the cell that is running; what is shown in another one stays as it is."""
        cell = _shell().execution_count
        if self._cell not in (None, cell):
            self.close()
            self._reset()
        self._cell = cell

    def progress(self, figures: Figures) -> None:
        """Move the bar."""
        with self._lock:
            if self._make_bar is None:
                self._page.progress(figures)
                self._page_changed = True
            else:
                self._figures = figures
            self._wake()

    def end_pass(self) -> None:
        """The bar stays for the next pass: a new one for each would fill the cell."""

    def line(self, level: str, text: str) -> None:
        """Add a line of the log."""
        with self._lock:
            self._page.line(level, text)
            self._page_changed = True
            self._wake()

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Add a row to the table."""
        with self._lock:
            self._page.epoch(epoch, metrics)
            self._page_changed = True
            self._wake()

    def graph(self, name: str, png: bytes) -> None:
        """Show a picture in place of the one of that name."""
        with self._lock:
            if name in self._shown or len(self._shown) < GRAPHS:
                self._shown.add(name)
                self._graphs[name] = png
                self._wake()

    def close(self) -> None:
        """Show the last state, and take the bar away."""
        thread, self._thread = self._thread, None
        if thread is not None:
            with self._lock:
                self._closing = True
                self._lock.notify()
            thread.join()
            atexit.unregister(self.close)
            self._leave_cell()
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.end()

    def _wake(self) -> None:
        """Have the thread show what changed; called with the lock held."""
        if self._thread is None:
            self._closing = False
            # Displays go to the cell whose context the thread has taken over.
            run = contextvars.copy_context().run
            self._thread = threading.Thread(target=run, args=(self._run,), name="minetorch-view", daemon=True)
            self._thread.start()
            atexit.register(self.close)
            self._events = _shell().events
            self._events.register("post_run_cell", self._end_cell)
        self._lock.notify()

    def _end_cell(self, *_: object) -> None:
        """Show what is still to be shown: who runs a notebook as a whole hears nothing of a cell after its end."""
        self._leave_cell()
        self._show_news()

    def _leave_cell(self) -> None:
        with suppress(ValueError):  # the cell has ended before
            self._events.unregister("post_run_cell", self._end_cell)

    def _run(self) -> None:
        closing = False
        while not closing:
            with self._lock:
                self._lock.wait_for(lambda: self._closing or self._has_news())
                closing = self._closing
            self._show_news()
            with self._lock:
                self._lock.wait_for(lambda: self._closing, timeout=INTERVAL_S)

    def _show_news(self) -> None:
        with self._showing:
            with self._lock:
                figures, self._figures = self._figures, None
                graphs, self._graphs = self._graphs, {}
                page, self._page_changed = (self._page.html(), self._page.text()) if self._page_changed else None, False
            if figures is not None and self._make_bar is not None:
                self._bar = self._bar or self._make_bar()
                self._bar.show(figures)
            if page is not None:
                self._show("", {"text/html": page[0], "text/plain": page[1]})
            for name, png in graphs.items():
                self._show(name, {"image/png": png, "text/plain": name})

    def _has_news(self) -> bool:
        return self._page_changed or bool(self._graphs) or self._figures is not None

    def _show(self, key: str, data: dict[str, Any]) -> None:
        from IPython.display import display

        handle = self._handles.get(key)
        if handle is None:
            identity = f"minetorch-{uuid.uuid4().hex}"
            self._handles[key] = display(data, raw=True, display_id=identity)  # type: ignore[no-untyped-call]
        else:
            handle.update(data, raw=True)


def _shell() -> Any:
    """IPython's, of the kernel that this process is."""
    from IPython import get_ipython

    return get_ipython()
