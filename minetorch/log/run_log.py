"""The logger of one rank of a run, with its outputs.

Each Trainer has a logger of its own below `logging.getLogger("minetorch")`, so that a user's levels and handlers apply
to it. Nothing is configured before a Trainer is made, and never the root logger.
"""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING

from minetorch.errors import ConfigurationError, in_brief
from minetorch.log.console import ConsoleFormatter, ConsoleHandler, ViewHandler, WarningsUpwards, is_shown_elsewhere
from minetorch.log.files import FileHandler, LocalFileHandler, LogStore
from minetorch.log.remote import RemoteFileHandler
from minetorch.log.shared import PythonsWarnings, SharedWarnings, torchs_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from minetorch.notebook.view import View

LOGGING_FORMAT = "%(levelname)s %(asctime)s %(message)s"
"""Of the files, where the user gives none."""

_COUNT = itertools.count(1)


class RunLog:
    """The logger of one rank of a run, with its outputs.

    Rank 0 writes to the console and to `log.txt`, another rank to `logs/rank_N.txt`. The warnings of all ranks come to
    the console, those that several ranks have in common once. A line that cannot be written to its file stops nothing:
    that is said once on the console.
    """

    logger: logging.Logger
    """Where the Trainer, plugins and hooks write."""

    def __init__(
        self,
        store: LogStore,
        *,
        rank: int = 0,
        world_size: int = 1,
        logging_format: str | None = None,
        in_notebook: bool = False,
        view: View | None = None,
        append: bool = True,
        held: bool = False,
    ) -> None:
        """Make the logger; nothing is written before its first line.

        Args:
            store: the files of the run.
            rank: this process's rank.
            world_size: how many ranks there are.
            logging_format: of every line, as of `logging.Formatter`, in % style; None: `LOGGING_FORMAT` in the files,
                and a shorter form on the console.
            in_notebook: write to stdout, since notebooks show stderr as an error.
            view: write there in place of the console.
            append: keep what the file has and go on below it, as a resumed run must.
            held: keep the lines for the file back until `begin`.

        Raises:
            ConfigurationError: `logging_format` is not such a format.
        """
        in_file = _formatter(LOGGING_FORMAT if logging_format is None else logging_format)
        on_console = ConsoleFormatter() if logging_format is None else in_file
        self.logger = _own_logger()
        console = ConsoleHandler(to_stdout=in_notebook) if view is None else ViewHandler(view)
        self._shared: SharedWarnings | None = None
        self._pythons: PythonsWarnings | None = None
        file_kind = LocalFileHandler if store.is_local else RemoteFileHandler
        self._file: FileHandler = file_kind(store, rank=rank, append=append, console=console)
        self._file.held = [] if held else None
        if view is None:
            console.addFilter(lambda record: not is_shown_elsewhere(self.logger, record.levelno))
        handlers: list[logging.Handler] = [self._file]
        if rank == 0:
            handlers.insert(0, console)
        else:
            self.logger.propagate = False
            self.logger.addHandler(WarningsUpwards(self.logger.parent or logging.getLogger()))
        if world_size > 1 or rank > 0:
            if rank == 0:
                console.addFilter(lambda record: record.levelno < logging.WARNING)
            self._shared = SharedWarnings(console, rank=rank, size=world_size, tally=torchs_store)
            if view is None:
                self._shared.addFilter(lambda record: not is_shown_elsewhere(self.logger, record.levelno))
            self._pythons = PythonsWarnings(self.logger)
            handlers.append(self._shared)
        console.setFormatter(on_console)
        for handler in handlers:
            handler.setFormatter(in_file if handler is self._file else on_console)
            self.logger.addHandler(handler)

    def begin(self, guard: Callable[[], object] | None = None) -> None:
        """Write the lines that were held back, and from now on each line as it comes.

        Args:
            guard: called before each writing; what it raises keeps the lines from being written.
        """
        if self._pythons is not None:
            self._pythons.take()
        self._file.begin(guard)

    def ended(self, step: int, summary: str = "") -> None:
        """Say that the run has ended with all work up to this optimizer step saved."""
        self.logger.info("%s", f"Ended at step {step}. {summary}".rstrip())

    def flush(self) -> None:
        """Bring every line so far to the store, as before each checkpoint's commit.

        On a local disk each line is there at once, and elsewhere within half a minute.
        """
        self._file.flush()

    def reopen(self) -> None:
        """Write as before `close`."""
        if self._pythons is not None:
            self._pythons.take()
        self._file.reopen()

    def close(self) -> None:
        """Flush, and let go of the file. A line that comes later is still written, if at some cost."""
        if self._pythons is not None:
            self._pythons.let_go()
        if self._shared is not None:
            self._shared.close()
        self._file.close()


def _own_logger() -> logging.Logger:
    """A logger that no other Trainer of this process has; its level is that of "minetorch", INFO if nobody set it."""
    tree = logging.getLogger("minetorch")
    if tree.level == logging.NOTSET:
        tree.setLevel(logging.INFO)
    return tree.getChild(f"run.{next(_COUNT)}")


def _formatter(logging_format: str) -> logging.Formatter:
    """A formatter that is known to work.

    Raises:
        ConfigurationError: a line cannot be formatted with it.
    """
    try:
        if not isinstance(logging_format, str) or not logging_format:
            raise ValueError("it is no string, or empty")
        formatter = logging.Formatter(logging_format)
        formatter.format(logging.LogRecord("minetorch", logging.INFO, __file__, 1, "tried", None, None))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(
            f"logging_format={in_brief(logging_format)} is not a format of Python's logging ({error}); "
            f"the default is {LOGGING_FORMAT!r}"
        ) from error
    return formatter
