"""A rank's log in the run's directory, by lines."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from minetorch.errors import RunVanishedError, SupersededError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

LOG_FILE = "log.txt"
LOG_FOLDER = "logs"
"""Where all is that is not rank 0's newest lines."""


def log_file(rank: int) -> str:
    """The file of a rank's log, below the run's directory."""
    return LOG_FILE if rank == 0 else f"{LOG_FOLDER}/rank_{rank}.txt"


def log_stem(rank: int) -> str:
    """What the names of the other files of that log begin with, in `LOG_FOLDER`."""
    return "log" if rank == 0 else f"rank_{rank}"


class LogStore(Protocol):
    """The files of one run: as much of the checkpoint store as the log needs."""

    @property
    def is_local(self) -> bool:
        """Whether `local_path` works."""
        ...

    def local_path(self, name: str = "") -> Path:
        """Where a file stands on this machine's disk (local stores only)."""
        ...

    def child(self, *parts: str) -> LogStore:
        """The store some folders below."""
        ...

    def list(self, prefix: str = "") -> Sequence[str]:
        """The names of the files directly in it that begin with `prefix`."""
        ...

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError where there is none."""
        ...

    def write(self, name: str, data: bytes) -> object:
        """Replace a file at once."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file."""
        ...

    def keep_beginning(self, name: str, size: int | None) -> None:
        """Replace a file by a copy of its first `size` bytes, or of all (local stores only)."""
        ...


class FileHandler(logging.Handler, ABC):
    """Writes a rank's log, and says once on the console where it cannot."""

    def __init__(self, store: LogStore, *, rank: int, append: bool, console: logging.Handler) -> None:
        super().__init__()
        self.name_of_file = log_file(rank)
        self._stem = log_stem(rank)
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
            try:
                self.add(text)
            finally:
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

    def reopen(self) -> None:
        """From now on keep the file open again."""
        with self._locked():
            self._closed = False

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
        if self._reported or isinstance(error, SupersededError | RunVanishedError):  # which the training raises itself
            return
        self._reported = True
        text = "%s cannot be written: %s: %s. Training goes on; it is tried again, and this is said only once."
        details = (self.name_of_file, type(error).__name__, error)
        # Not handle(): the warnings of rank 0 take another way to the console.
        self._console.emit(logging.LogRecord("minetorch", logging.WARNING, __file__, 0, text, details, None))


class LocalFileHandler(FileHandler):
    """Appends each line to a file on this machine at once.

    A start does not append to the file of the start before, but to a copy that takes its place: a process of that
    start that still has the old file open cannot write into this one's.
    """

    _stream: BinaryIO | None = None
    _is_own = False

    def add(self, text: str) -> None:
        """Write lines, and see them through to the file."""
        if self._stream is None:
            self._stream = self._open()
        # Now that the file is open: whatever file a later start makes, it is another one.
        self._guard()
        self._stream.write(text.encode("utf-8", "backslashreplace"))

    def sync(self) -> None:
        """Nothing waits: each line is written at once."""

    def let_go(self) -> None:
        """Close the file."""
        with self._locked():
            stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    @property
    def _path(self) -> Path:
        return Path(self._store.local_path(self.name_of_file))

    def _open(self) -> BinaryIO:
        if not self._is_own:
            self._guard()
            self._store.keep_beginning(self.name_of_file, None if self._append else 0)
            self._is_own = True
        path = self._path
        torn = _is_torn(path)
        # It stays open for the next lines.
        stream = open(path, "ab", buffering=0, opener=_open_own)  # noqa: SIM115
        if torn:
            stream.write(b"\n")
        return stream


def numbers(names: Sequence[str], prefix: str) -> list[int]:
    """The numbers in names such as `{prefix}0003.txt`."""
    middles = [name.removeprefix(prefix).removesuffix(".txt") for name in names if name.startswith(prefix)]
    return sorted(int(middle) for middle in middles if middle.isdecimal())


def _open_own(path: str, flags: int) -> int:
    """Open a file of the run's own that is there.

    Through a link, a run that somebody sent would write to any file of its user's.
    """
    return os.open(path, (flags | os.O_NOFOLLOW) & ~os.O_CREAT)


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
