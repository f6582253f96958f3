"""Where progress is shown: a bar on a terminal or in a notebook, lines in the log elsewhere."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from minetorch.log import MESSAGE_COLUMNS, on_console

if TYPE_CHECKING:
    import logging

    from minetorch.console.figures import Figures
    from minetorch.notebook.view import View

COLUMNS_VARIABLE = "MINETORCH_CONSOLE_COLUMNS"
"""Set by `minetorch-launch`: the columns left for a worker's line on the launcher's terminal."""

BAR_INTERVAL_S = 0.25
LINE_INTERVAL_S = 10.0
_COLUMNS, _ROWS = 100, 24  # where nobody tells how many there are
_LEAST_BAR = 6  # columns of the bar itself, below which a figure goes instead
_WITH_TOTAL = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
_WITHOUT_TOTAL = "{desc} {n_fmt} batches{postfix}"


class Display(Protocol):
    """Where the figures are shown."""

    interval_s: float
    """Seconds from one showing to the next, at least."""
    at_once: bool
    """Whether to show the first iteration of a pass, or only after the first interval."""

    def show(self, figures: Figures, logger: logging.Logger) -> None:
        """Show these figures in place of those before."""

    def end(self) -> None:
        """The pass is over, or cut short."""


class Bar:
    """A tqdm bar, which goes away when its pass ends: the epoch's line in the log takes its place."""

    interval_s = BAR_INTERVAL_S
    at_once = True

    def __init__(self, make: Callable[..., Any]) -> None:
        """Show on what `make` makes, a tqdm class with the options of its output."""
        self._make = make
        self._bar: Any = None

    def show(self, figures: Figures, logger: logging.Logger) -> None:
        """Move the bar."""
        if self._bar is None:
            self._bar = self._make(
                desc=figures.title,
                total=figures.total,
                initial=figures.done,
                bar_format=_WITHOUT_TOTAL if figures.total is None else _WITH_TOTAL,
                leave=False,
                figures=figures,
            )
            return
        self._bar.figures = figures
        self._bar.n = figures.done
        self._bar.refresh()

    def end(self) -> None:
        """Take the bar away."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()


class NotebookBar:
    """One `tqdm.notebook` bar for the whole run: one for each pass would leave a dead widget each in the cell."""

    def __init__(self) -> None:
        """Nothing is shown yet."""
        self._bar: Any = None
        self._title = ""

    def show(self, figures: Figures) -> None:
        """Move the bar, back to the beginning for a new pass."""
        bar_format = _WITHOUT_TOTAL if figures.total is None else _WITH_TOTAL
        if self._bar is None:
            self._bar = _notebook_tqdm()(total=figures.total, bar_format=bar_format, leave=False)
        elif figures.title != self._title:
            self._bar.reset(total=figures.total)
            self._bar.total, self._bar.bar_format = figures.total, bar_format
        self._title = figures.title
        self._bar.n = figures.done
        self._bar.set_description_str(figures.title, refresh=False)
        self._bar.set_postfix_str(figures.details(), refresh=False)
        self._bar.refresh()

    def end(self) -> None:
        """Take the bar away."""
        bar, self._bar = self._bar, None
        if bar is not None:
            # tqdm leaves a red bar where less than all is done, which a run that was stopped is no reason for.
            bar.total = bar.n
            bar.close()


class ViewDisplay:
    """Hands the figures to what shows the whole run."""

    interval_s = BAR_INTERVAL_S
    at_once = True

    def __init__(self, view: View) -> None:
        self._view = view

    def show(self, figures: Figures, logger: logging.Logger) -> None:
        """Show these figures in place of those before."""
        self._view.progress(figures)

    def end(self) -> None:
        """The pass is over."""
        self._view.end_pass()


class Lines:
    """A line in the log now and then, for output that goes to a file."""

    at_once = False

    def __init__(self, interval_s: float = LINE_INTERVAL_S) -> None:
        self.interval_s = interval_s

    def show(self, figures: Figures, logger: logging.Logger) -> None:
        """Log a line."""
        of_total = "" if figures.total is None else f"/{figures.total} ({figures.done / max(figures.total, 1):.0%})"
        place = f"{figures.title}: batch {figures.done}{of_total}, "
        short = on_console(f"{place}{figures.details_within(MESSAGE_COLUMNS - len(place))}")
        logger.info("%s", f"{place}{figures.details()}", extra=short)

    def end(self) -> None:
        """Nothing stays open."""


def make_display(environ: Mapping[str, str], *, in_notebook: bool = False, stream: TextIO | None = None) -> Display:
    """What suits the place to which this process writes.

    Args:
        environ: the environment, in which the launcher says how wide its terminal is.
        in_notebook: a text bar on stdout.
        stream: where to write outside of notebooks; stderr by default.
    """
    if in_notebook:
        return Bar(_text_bar(sys.stdout, ncols=_COLUMNS))
    stream = stream or sys.stderr
    if stream is not None and stream.isatty():
        if _has_no_size(stream):
            return Bar(_text_bar(stream, ncols=_COLUMNS, nrows=_ROWS))
        return Bar(_text_bar(stream, dynamic_ncols=True))
    columns = environ.get(COLUMNS_VARIABLE, "")
    if stream is not None and columns.isdecimal() and int(columns) > 0:
        # As on a terminal, the last column stays free: the launcher would cut what reaches into it.
        return Bar(_text_bar(stream, ncols=int(columns) - 1))
    return Lines()


def has_widgets() -> bool:
    """Whether a notebook's own bar can be shown."""
    return importlib.util.find_spec("ipywidgets") is not None


def _has_no_size(terminal: TextIO) -> bool:
    """Whether a terminal says that it has no columns, as some containers' do: tqdm would show nothing there."""
    try:
        return 0 in os.get_terminal_size(terminal.fileno())
    except (OSError, ValueError):
        return False


def _text_bar(stream: Any, **options: Any) -> Callable[..., Any]:
    from tqdm import tqdm

    class TextBar(tqdm):  # type: ignore[type-arg]
        # tqdm would start a thread that looks after bars which forget to refresh.
        monitor_interval = 0

        def __init__(self, *args: Any, figures: Figures, **kwargs: Any) -> None:
            self.figures = figures
            super().__init__(*args, **kwargs)

        @property
        def format_dict(self) -> Any:
            # Here, for the terminal's width may have changed since the last time.
            facts = super().format_dict
            figures = self.figures
            fixed = f"{figures.title} {figures.done} batches, "
            if figures.total is not None:
                fixed = f"{figures.title} 100%|{' ' * _LEAST_BAR}| {figures.done}/{figures.total}, "
            details = figures.details_within((facts["ncols"] or _COLUMNS) - len(fixed))
            return {**facts, "postfix": details or None}

    def make(**figures: Any) -> Any:
        return TextBar(file=stream, **options, **figures)

    return make


def _notebook_tqdm() -> Any:
    from tqdm.notebook import tqdm_notebook

    class WidgetBar(tqdm_notebook):  # type: ignore[type-arg]
        monitor_interval = 0

    return WidgetBar
