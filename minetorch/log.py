"""The log of a run: the console of rank 0 and `log.txt` in the run's directory.

Each Trainer has a logger of its own, which belongs to no tree: nothing here configures the root
logger, and a user's own logging configuration changes nothing here.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from abc import ABC, abstractmethod
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from minetorch.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import TextIO

    from minetorch.inline.view import View

LOGGING_FORMAT = "%(levelname)s %(asctime)s %(message)s"
LOG_FILE = "log.txt"


class LogStore(Protocol):
    """The files of one run: as much of the checkpoint store as the log needs."""

    @property
    def is_local(self) -> bool:
        """Whether `local_path` works."""
        ...

    def local_path(self, name: str = "") -> Path:
        """Where a file stands on this machine's disk (local stores only)."""
        ...

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError where there is none."""
        ...

    def write(self, name: str, data: bytes) -> object:
        """Replace a file at once."""
        ...


class RunLog:
    """The logger of one rank of a run, with its outputs.

    Rank 0 writes to the console and to `log.txt`; the other ranks write their warnings and errors to
    the console only, each with its rank before it. A line that cannot be written to `log.txt` stops
    nothing: that is said once on the console.
    """

    logger: logging.Logger
    """Where the Trainer, plugins and hooks write."""

    def __init__(
        self,
        store: LogStore,
        *,
        rank: int = 0,
        logging_format: str = LOGGING_FORMAT,
        in_notebook: bool = False,
        view: View | None = None,
        append: bool = True,
        held: bool = False,
    ) -> None:
        """Make the logger; nothing is written before its first line.

        Args:
            store: the files of the run.
            rank: this process's rank.
            logging_format: as of `logging.Formatter`, in % style.
            in_notebook: write to stdout, since notebooks show stderr as an error.
            view: write there in place of the console.
            append: keep what `log.txt` has and go on below it, as a resumed run must.
            held: keep the lines for `log.txt` back until `begin`.

        Raises:
            ConfigurationError: `logging_format` is not such a format.
        """
        formatter = _formatter(logging_format, rank)
        self.logger = logging.Logger("minetorch", logging.INFO if rank == 0 else logging.WARNING)
        self.logger.propagate = False
        self._console: logging.Handler = _ConsoleHandler(to_stdout=in_notebook) if view is None else _ViewHandler(view)
        self._file: _FileHandler | None = None
        handlers: list[logging.Handler] = [self._console]
        if rank == 0:
            kind = _LocalFileHandler if store.is_local else _RemoteFileHandler
            self._file = kind(store, append=append, console=self._console)
            self._file.held = [] if held else None
            handlers.append(self._file)
        for handler in handlers:
            handler.setFormatter(formatter)
            self.logger.addHandler(handler)

    def begin(self, guard: Callable[[], object] | None = None) -> None:
        """Write the lines that were held back, and from now on each line as it comes.

        Args:
            guard: called before each writing; what it raises keeps the lines from being written.
        """
        if self._file is not None:
            self._file.begin(guard)

    def flush(self) -> None:
        """Bring every line so far to the store; called at checkpoints and at the end of each epoch.

        On a local disk each line is there at once. To any other store this writes the whole file.
        """
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Flush, and let go of the file. A line that comes later is still written, if at some cost."""
        if self._file is not None:
            self._file.close()


def _formatter(logging_format: str, rank: int) -> logging.Formatter:
    """A formatter that is known to work.

    Raises:
        ConfigurationError: a line cannot be formatted with it.
    """
    try:
        if not logging_format:
            raise ValueError("it is empty")
        formatter = logging.Formatter(logging_format)
        formatter.format(logging.LogRecord("minetorch", logging.INFO, __file__, 1, "tried", None, None))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(
            f"logging_format={logging_format!r} is not a format of Python's logging ({error}); "
            f"the default is {LOGGING_FORMAT!r}"
        ) from error
    return formatter if rank == 0 else logging.Formatter(f"rank {rank}: {logging_format}")


class _ConsoleHandler(logging.Handler):
    """Writes to what sys.stderr (or sys.stdout) is at that moment, above a living progress bar."""

    def __init__(self, *, to_stdout: bool) -> None:
        super().__init__()
        self._to_stdout = to_stdout

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        stream = sys.stdout if self._to_stdout else sys.stderr
        if stream is None:  # a process without a console
            return
        try:
            line = self.format(record)
            with _above_bars(stream):
                stream.write(line + "\n")
                stream.flush()
        except Exception:
            self.handleError(record)


class _ViewHandler(logging.Handler):
    """Writes to what shows the whole run."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            self._view.line(record.levelname, self.format(record))
        except Exception:
            self.handleError(record)


def _above_bars(stream: TextIO) -> AbstractContextManager[object]:
    """Takes the progress bars off the screen for a moment; without one, tqdm is not even imported."""
    tqdm: Any = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if tqdm is None or not getattr(tqdm, "_instances", None):
        return nullcontext()
    bars: AbstractContextManager[object] = tqdm.external_write_mode(file=stream)
    return bars


class _FileHandler(logging.Handler, ABC):
    """Writes `log.txt`, and says once on the console where it cannot."""

    def __init__(self, store: LogStore, *, append: bool, console: logging.Handler) -> None:
        super().__init__()
        self._store = store
        self._append = append
        self._console = console
        self._reported = False
        self._closed = False
        self._guard: Callable[[], object] = lambda: None
        self.held: list[str] | None = None

    @abstractmethod
    def add(self, text: str) -> None:
        """Take lines."""

    @abstractmethod
    def sync(self) -> None:
        """Bring them to the store."""

    @abstractmethod
    def let_go(self) -> None:
        """Bring them to the store, and hold nothing open."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            text = self.format(record) + "\n"
        except Exception:
            self.handleError(record)  # the line's own fault, as `logger.info("%d", "word")`
            return
        if self.held is not None:
            self.held.append(text)
            return
        try:
            self.add(text)
            if self._closed:
                self.let_go()
        except Exception as error:
            self._report(error)

    def begin(self, guard: Callable[[], object] | None) -> None:
        """Write what was held back, and hold nothing back from now on."""
        with self._locked():
            held, self.held = self.held or [], None
            self._guard = guard or self._guard
            if held:
                try:
                    self.add("".join(held))
                except Exception as error:
                    self._report(error)

    def flush(self) -> None:
        """Bring every line so far to the store."""
        # Without the handler's lock, which a thread that logs would then wait for as long as a slow store takes.
        try:
            self.sync()
        except Exception as error:
            self._report(error)

    def close(self) -> None:
        """Let go of the file, now and after each later line."""
        with self._locked():
            self._closed = True
        try:
            self.let_go()
        except Exception as error:
            self._report(error)
        super().close()

    def _locked(self) -> AbstractContextManager[object]:
        return self.lock or nullcontext()

    def _report(self, error: Exception) -> None:
        if self._reported:
            return
        self._reported = True
        text = "%s cannot be written: %s: %s. Training goes on; it is tried again, and this is said only once."
        details = (LOG_FILE, type(error).__name__, error)
        self._console.handle(logging.LogRecord("minetorch", logging.WARNING, __file__, 0, text, details, None))


class _LocalFileHandler(_FileHandler):
    """Appends each line to a file on this machine at once."""

    _stream: TextIO | None = None

    def add(self, text: str) -> None:
        """Write lines, and see them through to the file."""
        self._guard()
        if self._stream is None:
            self._stream = self._open()
        self._stream.write(text)
        self._stream.flush()

    def sync(self) -> None:
        """Nothing waits: each line is written at once."""

    def let_go(self) -> None:
        """Close the file."""
        with self._locked():
            stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _open(self) -> TextIO:
        path = Path(self._store.local_path(LOG_FILE))
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = self._append and _is_torn(path)
        stream = path.open("a" if self._append else "w", encoding="utf-8", errors="backslashreplace")
        self._append = True
        if torn:
            stream.write("\n")
        return stream


class _RemoteFileHandler(_FileHandler):
    """Keeps the lines, and writes the whole file at each flush: object stores cannot append."""

    def __init__(self, store: LogStore, *, append: bool, console: logging.Handler) -> None:
        super().__init__(store, append=append, console=console)
        self._before: bytes | None = None if append else b""  # what the file held; None: not yet read
        self._lines: list[bytes] = []
        self._waiting = False
        self._adding = threading.Lock()
        self._syncing = threading.Lock()

    def add(self, text: str) -> None:
        """Keep lines for the next sync."""
        with self._adding:
            self._lines.append(text.encode("utf-8", "backslashreplace"))
            self._waiting = True

    def sync(self) -> None:
        """Write the file, if there is anything new. Lines may come meanwhile."""
        with self._syncing:
            with self._adding:
                waiting, self._waiting = self._waiting, False
                lines = b"".join(self._lines)
            if not waiting:
                return
            try:
                self._guard()
                if self._before is None:
                    # A failure to read must not be taken for an empty file: the old lines would be lost.
                    self._before = self._read_before()
                self._store.write(LOG_FILE, self._before + lines)
            except Exception:
                self._waiting = True
                raise

    def let_go(self) -> None:
        """Write what is left."""
        self.sync()

    def _read_before(self) -> bytes:
        try:
            before = self._store.read(LOG_FILE)
        except FileNotFoundError:
            return b""
        return before if not before or before.endswith(b"\n") else before + b"\n"


def _is_torn(path: Path) -> bool:
    """Whether the file ends amid a line, as that of a killed process may."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except FileNotFoundError:
        return False
