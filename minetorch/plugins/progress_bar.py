"""Shows how far the epoch is: a bar on a terminal or in a notebook, lines in the log elsewhere."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    import logging

    import torch

    from minetorch.state import TrainerState

COLUMNS_VARIABLE = "MINETORCH_CONSOLE_COLUMNS"
"""Set by `minetorch-launch`: the columns left for a worker's line on the launcher's terminal."""

BAR_INTERVAL_S = 0.25
LINE_INTERVAL_S = 10.0
_COLUMNS, _ROWS = 100, 24  # where nobody tells how many there are
_WINDOW = 8  # refreshes over which the rate is taken
_WITH_TOTAL = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
_WITHOUT_TOTAL = "{desc} {n_fmt} batches{postfix}"


@dataclass(frozen=True)
class Figures:
    """What is shown at one moment of a pass over the data."""

    title: str
    """Such as "Epoch 3/10"."""
    done: int
    """Iterations that are done, those before a resumption included."""
    total: int | None
    """Iterations of the whole pass; None where that is unknown."""
    loss: float
    """Of rank 0's last batch."""
    rate: float | None
    """Samples (or batches) a second over all ranks; None before it can be known."""
    rate_unit: str
    left_s: float | None
    """Seconds until the pass ends, likewise."""

    def details(self) -> str:
        """Loss, rate and time left in words."""
        parts = [f"loss {self.loss:.4g}"]
        if self.rate is not None:
            parts.append(f"{self.rate:,.{0 if self.rate >= 10 else 1}f} {self.rate_unit}/s")
        if self.left_s is not None:
            parts.append(f"{clock_time(self.left_s)} left")
        return ", ".join(parts)


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
                postfix=figures.details(),
                bar_format=_WITHOUT_TOTAL if figures.total is None else _WITH_TOTAL,
                leave=False,
            )
            return
        self._bar.n = figures.done
        self._bar.set_postfix_str(figures.details(), refresh=False)
        self._bar.refresh()

    def end(self) -> None:
        """Take the bar away."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()


class Lines:
    """A line in the log now and then, for output that goes to a file."""

    at_once = False

    def __init__(self, interval_s: float = LINE_INTERVAL_S) -> None:
        self.interval_s = interval_s

    def show(self, figures: Figures, logger: logging.Logger) -> None:
        """Log a line."""
        of_total = "" if figures.total is None else f"/{figures.total} ({figures.done / max(figures.total, 1):.0%})"
        logger.info("%s: batch %d%s, %s", figures.title, figures.done, of_total, figures.details())

    def end(self) -> None:
        """Nothing stays open."""


class ProgressBar:
    """Shows the progress of each epoch. For rank 0 only.

    Between two refreshes an iteration costs one look at the clock: the loss stays on its device,
    since fetching it makes a GPU wait.
    """

    def __init__(self, display: Display, clock: Callable[[], float] = time.perf_counter) -> None:
        """Show on `display`; `clock` gives seconds."""
        self._display = display
        self._clock = clock
        self._due = float("-inf")
        self._validating = False
        self._marks: deque[tuple[float, int, int]] = deque(maxlen=_WINDOW)  # time, iterations, samples

    def before_epoch_start(self, trainer: TrainerState) -> None:
        """Begin anew, also in the middle of an epoch."""
        self._begin(validating=False)

    def after_train_iteration_end(self, trainer: TrainerState, index: int, loss: torch.Tensor) -> None:
        """Refresh if it is time."""
        now = self._clock()
        if now < self._due:
            return
        progress = trainer.progress
        self._refresh(trainer, now, index + 1, trainer.train_iterations, progress.samples_in_epoch, loss)

    def after_val_iteration_end(self, trainer: TrainerState, index: int, loss: torch.Tensor) -> None:
        """Refresh if it is time."""
        now = self._clock()
        if now < self._due and self._validating:
            return
        if not self._validating:
            self._begin(validating=True)
        self._refresh(trainer, now, index + 1, trainer.val_iterations, 0, loss)

    def after_epoch_end(self, trainer: TrainerState) -> None:
        """Make room for the epoch's line."""
        self.close()

    def before_quit(self, trainer: TrainerState) -> None:
        """Leave a clean screen."""
        self.close()

    def close(self) -> None:
        """Take away what is shown."""
        try:
            self._display.end()
        except (OSError, ValueError):
            self._due = float("inf")

    def _begin(self, *, validating: bool) -> None:
        self.close()
        self._validating = validating
        self._marks.clear()
        if self._due != float("inf"):
            self._due = float("-inf")

    def _refresh(
        self, trainer: TrainerState, now: float, done: int, total: int | None, samples: int, loss: torch.Tensor
    ) -> None:
        # The first mark stands after an iteration, so that its warming up does not count in the rate.
        first = not self._marks
        self._marks.append((now, done, samples))
        if self._display.at_once or not first:
            figures = self._figures(trainer, done, total, loss.item())
            try:
                self._display.show(figures, trainer.logger)
            except (OSError, ValueError):
                # A console that has gone away is no reason to end a training.
                self._due = float("inf")
                return
        self._due = self._clock() + self._display.interval_s

    def _figures(self, trainer: TrainerState, done: int, total: int | None, loss: float) -> Figures:
        last = f"/{trainer.max_epochs}" if trainer.max_epochs else ""
        start, end = self._marks[0], self._marks[-1]
        seconds, iterations, samples = (late - early for early, late in zip(start, end, strict=True))
        left_s = None
        if total is not None and iterations > 0:
            left_s = max(0, total - done) * seconds / iterations
        # The run counts training samples only; validation is shown in this rank's batches.
        count = iterations if self._validating else samples
        return Figures(
            title=f"Epoch {trainer.current_epoch}{last}{' validation' if self._validating else ''}",
            done=done,
            total=total,
            loss=loss,
            rate=count / seconds if seconds > 0 else None,
            rate_unit="batches" if self._validating else "samples",
            left_s=left_s,
        )


def make_progress_bar(
    environ: Mapping[str, str], *, in_notebook: bool = False, stream: TextIO | None = None
) -> ProgressBar:
    """The progress bar that suits the place to which this process writes.

    Args:
        environ: the environment, in which the launcher says how wide its terminal is.
        in_notebook: use the notebook's own bar (or a text bar, where ipywidgets is not installed).
        stream: where to write outside of notebooks; stderr by default.
    """
    if in_notebook:
        return ProgressBar(Bar(_notebook_bar()))
    stream = stream or sys.stderr
    if stream is not None and stream.isatty():
        if _has_no_size(stream):
            return ProgressBar(Bar(_text_bar(stream, ncols=_COLUMNS, nrows=_ROWS)))
        return ProgressBar(Bar(_text_bar(stream, dynamic_ncols=True)))
    columns = environ.get(COLUMNS_VARIABLE, "")
    if stream is not None and columns.isdecimal() and int(columns) > 0:
        return ProgressBar(Bar(_text_bar(stream, ncols=int(columns))))
    return ProgressBar(Lines())


def clock_time(seconds: float) -> str:
    """Seconds as 0:09, 12:34 or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


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

    def make(**figures: Any) -> Any:
        return TextBar(file=stream, **options, **figures)

    return make


def _notebook_bar() -> Callable[..., Any]:
    if importlib.util.find_spec("ipywidgets") is None:
        return _text_bar(sys.stdout, ncols=_COLUMNS)
    from tqdm.notebook import tqdm_notebook

    class NotebookBar(tqdm_notebook):  # type: ignore[type-arg]
        monitor_interval = 0

    return NotebookBar
