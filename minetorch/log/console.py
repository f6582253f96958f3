"""The console's end of the log."""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import TextIO

    from minetorch.notebook.view import View

CONSOLE_COLUMNS = 110
"""Columns within which a line about an epoch stays on the console, with what stands in front of it."""
MESSAGE_COLUMNS = CONSOLE_COLUMNS - len("[0] 12:34:56 ")
"""Of these, columns for the message, after the launcher's rank and the time."""

_ON_CONSOLE = "minetorch_on_console"


class ConsoleFormatter(logging.Formatter):
    """A line for people: the time of day, and the level where it is not INFO.

    A record may have a shorter message for the console, as `logger.info(message, extra=on_console(shorter))` gives it.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """The line without an exception."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname} "
        return f"{record.asctime} {level}{getattr(record, _ON_CONSOLE, record.message)}"


def on_console(message: str) -> dict[str, str]:
    """The `extra` of a record whose message on the console is another than in the files."""
    return {_ON_CONSOLE: message}


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


class WarningsUpwards(logging.Handler):
    """Hands warnings and errors to the handlers of a logger, where their rank's other lines go to its file alone."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logging.WARNING)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record on. Without handlers there, Python would print it in its own way."""
        if self._logger.hasHandlers():
            self._logger.handle(record)


def is_shown_elsewhere(logger: logging.Logger, level: int) -> bool:
    """Whether a handler of the user's, such as `logging.basicConfig` makes, writes such a line to the console."""
    consoles = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    above: logging.Logger | None = logger.parent
    while above is not None:
        for handler in above.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in consoles and handler.level <= level:
                return True
        above = above.parent if above.propagate else None
    return False


def _above_bars(stream: TextIO) -> AbstractContextManager[object]:
    """Takes the progress bars off the screen for a moment; without one, tqdm is not even imported."""
    tqdm: Any = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if tqdm is None or not getattr(tqdm, "_instances", None):
        return nullcontext()
    bars: AbstractContextManager[object] = tqdm.external_write_mode(file=stream)
    return bars
