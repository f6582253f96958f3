"""The event files of a run: one that grows on this machine, or segments in a remote storage, which cannot append."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from minetorch.drawers import events

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from minetorch.drawers.drawer import RunStore

SEGMENT_BYTES = 256 * 1024
"""A remote segment of this size or more is closed. Each upload sends at most this, and what came since the last."""

_PREFIX = "events.out.tfevents."
_SUFFIX = ".minetorch"  # tells our files, which we may delete, from those that a user's own writer put there
_STAMP = re.compile(rf"{re.escape(_PREFIX)}(\d+)\.")


class EventFiles:
    """What one start of the run writes. TensorBoard reads its files in the order of their names."""

    def __init__(self, store: RunStore, older: Sequence[str]) -> None:
        """Begin after the files that are there.

        Args:
            store: the files of the run.
            older: names of the event files before.
        """
        self.is_broken = False
        """Whether what was added last may be there in part: nothing more can be written here."""
        stamps = [int(found[1]) for found in map(_STAMP.match, older) if found]
        self._stamp = max([int(time.time()), *(stamp + 1 for stamp in stamps)])
        self._store = store
        self._segments = 0
        self._unsent: list[Path] = []  # in order; the last may be open
        self._file: BinaryIO | None = None
        self._records: Any = None
        self._written = False  # since the last flush
        if store.is_local:
            self._folder = Path(store.local_path())
        else:
            self._folder = Path(tempfile.mkdtemp(prefix="minetorch-tensorboard-"))
        self.add(events.forget_all(time.time()))

    def add(self, event: bytes) -> None:
        """Append an event; it may be seen after the next flush."""
        try:
            if self._records is None:
                self._open()
            self._records.write(event)
        except Exception:
            self.is_broken = True
            raise
        self._written = True
        if not self._store.is_local and self._file is not None and self._file.tell() >= SEGMENT_BYTES:
            self._close_file()

    def flush(self) -> None:
        """Bring what was added to the disk, or to the remote storage, segment by segment."""
        try:
            if self._file is not None:
                self._file.flush()
        except Exception:
            self.is_broken = True
            raise
        if self._store.is_local:
            return
        while self._unsent:
            path = self._unsent[0]
            is_open = self._file is not None and len(self._unsent) == 1
            if is_open and not self._written:
                return
            self._store.write(path.name, path.read_bytes())
            if is_open:
                self._written = False
                return
            path.unlink()
            self._unsent.pop(0)

    def close(self) -> None:
        """Let go of everything; what was not flushed may be lost."""
        with suppress(Exception):
            self._close_file()
        if not self._store.is_local:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        path = self._folder / f"{_PREFIX}{self._stamp:010d}.{self._segments:06d}{_SUFFIX}"
        self._segments += 1
        self._file = self._store.create_open(path.name) if self._store.is_local else path.open("xb")
        self._unsent.append(path)
        self._records = RecordWriter(self._file)
        self._records.write(events.version())

    def _close_file(self) -> None:
        file, self._file, self._records = self._file, None, None
        if file is not None:
            file.close()


def event_files(store: RunStore) -> list[str]:
    """The names of the run's event files that a drawer wrote, in order."""
    if store.is_local:
        names = [path.name for path in Path(store.local_path()).glob(f"{_PREFIX}*{_SUFFIX}")]
    else:
        names = [name for name in store.list(_PREFIX) if name.startswith(_PREFIX) and name.endswith(_SUFFIX)]
    return sorted(names)


def media_events(store: RunStore, names: Sequence[str], most: int) -> Iterator[bytes]:
    """The first `most` events of pictures and histograms in these files."""
    return islice(_all_media(store, names), max(0, most))


def _all_media(store: RunStore, names: Sequence[str]) -> Iterator[bytes]:
    for name in names:
        if store.is_local:
            yield from events.media_in(Path(store.local_path(name)))
        elif store.size(name):
            with tempfile.TemporaryDirectory(prefix="minetorch-tensorboard-") as folder:
                path = Path(folder) / name
                path.write_bytes(store.read(name))
                yield from events.media_in(path)


def discard(store: RunStore, name: str) -> None:
    """Empty an old event file; one that is empty since long is deleted.

    A TensorBoard that is looking on goes from a file to the next at the end of the first. Where the
    first is gone, the loader that it uses for remote storages stays there for ever (seen with 2.21).
    """
    if store.size(name):
        store.write(name, b"")
    else:
        store.delete(name)
