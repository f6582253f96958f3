"""A rank's log on a storage that cannot append.

The newest lines are a file that each flush writes anew. When it has grown to `PART_BYTES` it is closed: it becomes
`logs/log.0001.txt`, and a new one begins, whose first line names it. So a flush never writes more than that, and a log
of n bytes costs at most n bytes over and above, however long the run.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from minetorch.log.files import LOG_FOLDER, FileHandler, LogStore, numbers

if TYPE_CHECKING:
    import logging

PART_BYTES = 256 * 1024
"""Bytes above which a part is closed: a PUT of so many takes hardly longer than one of a byte."""

FLUSH_S = 30.0
"""Seconds after which a line is in the store at the latest."""


class RemoteFileHandler(FileHandler):
    """Keeps the lines, and writes the newest part at each flush."""

    def __init__(
        self,
        store: LogStore,
        *,
        rank: int,
        append: bool,
        console: logging.Handler,
        part_bytes: int = PART_BYTES,
        flush_s: float = FLUSH_S,
    ) -> None:
        super().__init__(store, rank=rank, append=append, console=console)
        self._part_bytes, self._flush_s = part_bytes, flush_s
        self._before: bytes | None = None  # what the newest part has; None: not yet read
        self._parts = 0  # that are closed
        self._lines: list[bytes] = []  # to be written
        self._writing: list[bytes] = []  # being written
        self._timer: threading.Timer | None = None
        self._adding = threading.Lock()
        self._syncing = threading.Lock()

    def add(self, text: str) -> None:
        """Keep lines for the next sync."""
        with self._adding:
            self._lines.append(text.encode("utf-8", "backslashreplace"))
            if self._timer is None and not self._closed:
                self._timer = threading.Timer(self._flush_s, self.flush)
                self._timer.name, self._timer.daemon = "minetorch-log", True
                self._timer.start()

    def sync(self) -> None:
        """Write the newest part, if there is anything new. Lines may come meanwhile."""
        with self._syncing:
            with self._adding:
                timer, self._timer = self._timer, None
            if timer is not None:
                timer.cancel()
            before = self._loaded()
            with self._adding:
                self._writing, self._lines = self._lines, []
            if not self._writing:
                return
            try:
                self._guard()
                newest, parts = self._write(before + b"".join(self._writing))
            except Exception:
                with self._adding:
                    self._writing, self._lines = [], self._writing + self._lines
                raise
            with self._adding:
                self._writing, self._before, self._parts = [], newest, parts

    def let_go(self) -> None:
        """Write what is left."""
        self.sync()

    def _write(self, content: bytes) -> tuple[bytes, int]:
        """Write the newest part; returns what it is after that, and how many are closed."""
        if len(content) <= self._part_bytes:
            self._store.write(self.name_of_file, content)
            return content, self._parts
        self._folder.write(self._part(self._parts + 1), content)
        first_line = self._first_line(self._parts + 1)
        self._store.write(self.name_of_file, first_line)
        return first_line, self._parts + 1

    def _loaded(self) -> bytes:
        """The newest part as it is in the store. A failure must not be taken for an empty log: it would be lost."""
        if self._before is None:
            prefix = f"{self._stem}."
            parts = numbers(self._folder.list(prefix), prefix)
            self._parts = parts[-1] if parts else 0
            self._before = self._read_newest() if self._append else self._first_line(self._parts)
        return self._before

    def _read_newest(self) -> bytes:
        first_line = self._first_line(self._parts)
        try:
            newest = self._store.read(self.name_of_file)
        except FileNotFoundError:
            return first_line
        if not newest.startswith(first_line):
            # Killed after a part was closed, before the next was begun: these lines are in that part.
            return first_line
        return newest if not newest or newest.endswith(b"\n") else newest + b"\n"

    @property
    def _folder(self) -> LogStore:
        return self._store.child(LOG_FOLDER)

    def _part(self, number: int) -> str:
        return f"{self._stem}.{number:04}.txt"

    def _first_line(self, parts: int) -> bytes:
        return f"(goes on from {LOG_FOLDER}/{self._part(parts)})\n".encode() if parts else b""
