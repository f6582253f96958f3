"""The console's end of the log."""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import TextIO

    from minetorch.inline.view import View


class ConsoleHandler(logging.Handler):
    """Writes to what sys.stderr (or sys.stdout) is at that moment, above a living progress bar."""

    def __init__(self, *, to_stdout: bool) -> None:
        super().__init__()
        self._to_stdout = to_stdout

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            self.write(record.levelname, self.format(record))
        except Exception:
            self.handleError(record)

    def write(self, level: str, line: str) -> None:
        """Write a line that is formatted already."""
        stream = sys.stdout if self._to_stdout else sys.stderr
        if stream is None:  # a process without a console
            return
        with _above_bars(stream):
            stream.write(line + "\n")
            stream.flush()


class ViewHandler(ConsoleHandler):
    """Writes to what shows the whole run."""

    def __init__(self, view: View) -> None:
        super().__init__(to_stdout=True)
        self._view = view

    def write(self, level: str, line: str) -> None:
        """Write a line that is formatted already."""
        self._view.line(level, line)


def _above_bars(stream: TextIO) -> AbstractContextManager[object]:
    """Takes the progress bars off the screen for a moment; without one, tqdm is not even imported."""
    tqdm: Any = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if tqdm is None or not getattr(tqdm, "_instances", None):
        return nullcontext()
    bars: AbstractContextManager[object] = tqdm.external_write_mode(file=stream)
    return bars
