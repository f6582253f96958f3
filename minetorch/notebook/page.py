"""The HTML of a run's state: the newest epochs, warnings and log lines. Its size has an upper limit. Pure."""

from __future__ import annotations

import html
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minetorch.console.figures import Figures

EPOCHS = 10
"""Rows of the table."""
WARNINGS = 5
LINES = 15
LONGEST_LINE = 500
"""Letters of a line that are shown."""
METRICS = 12
"""Columns of the table."""


class Page:
    """What was heard of a run, as much of it as is shown."""

    def __init__(self) -> None:
        self._epochs: deque[tuple[int, dict[str, float]]] = deque(maxlen=EPOCHS)
        self._warnings: deque[str] = deque(maxlen=WARNINGS)
        self._lines: deque[str] = deque(maxlen=LINES)
        self._heard_warnings = 0
        self._figures: Figures | None = None

    def progress(self, figures: Figures) -> None:
        """Put a bar in place of the one before."""
        self._figures = figures

    def line(self, level: str, text: str) -> None:
        """Add a line of the log; from WARNING up it also stands apart."""
        shown = text if len(text) <= LONGEST_LINE else text[:LONGEST_LINE] + "…"
        self._lines.append(shown)
        if level not in ("INFO", "DEBUG"):
            self._warnings.append(shown)
            self._heard_warnings += 1

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Add a row; an epoch that is run anew takes the place of its row, and of those after it."""
        while self._epochs and self._epochs[-1][0] >= epoch:
            self._epochs.pop()
        self._epochs.append((epoch, dict(list(metrics.items())[:METRICS])))

    def html(self) -> str:
        """The page; "" as long as there is nothing to show."""
        return "".join([self._bar(), self._table(), self._warned(), self._log()])

    def text(self) -> str:
        """The same for who can show no HTML."""
        return "\n".join(self._lines)

    def _bar(self) -> str:
        if self._figures is None:
            return ""
        figures = self._figures
        total = "" if figures.total is None else f' max="{figures.total}"'
        value = "" if figures.total is None else f' value="{figures.done}"'
        words = html.escape(
            f"{figures.done}{'' if figures.total is None else f'/{figures.total}'}, {figures.details()}"
        )
        return f"<div>{html.escape(figures.title)} <progress{value}{total}></progress> {words}</div>"

    def _table(self) -> str:
        if not self._epochs:
            return ""
        names = list(dict.fromkeys(name for _, metrics in self._epochs for name in metrics))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ["epoch", *names])
        rows = "".join(_row(epoch, [metrics.get(name) for name in names]) for epoch, metrics in self._epochs)
        return f'<table class="minetorch-epochs"><tr>{head}</tr>{rows}</table>'

    def _warned(self) -> str:
        if not self._warnings:
            return ""
        left_out = self._heard_warnings - len(self._warnings)
        more = f"{left_out} earlier warnings are in the log\n" if left_out else ""
        text = html.escape(more + "\n".join(self._warnings))
        return f'<pre class="minetorch-warnings" style="color:#b45309;white-space:pre-wrap">{text}</pre>'

    def _log(self) -> str:
        if not self._lines:
            return ""
        text = html.escape("\n".join(self._lines))
        summary = html.escape(self._lines[-1])
        return (
            f'<details class="minetorch-log"><summary><code>{summary}</code></summary>'
            f'<pre style="white-space:pre-wrap">{text}</pre></details>'
        )


def _row(epoch: int, values: list[float | None]) -> str:
    cells = "".join(f"<td>{'' if value is None else f'{value:.5g}'}</td>" for value in values)
    return f"<tr><td>{epoch}</td>{cells}</tr>"
