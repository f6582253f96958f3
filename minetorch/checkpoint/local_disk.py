"""The files of a store on a local (or mounted) file system.

Every write goes to a temporary file beside its target and is made durable before it takes the target's place, so
that a reader, and a machine that loses its power, sees the old file or the new one and never a part.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from minetorch.checkpoint.entry import Entry, Unfinished
from minetorch.checkpoint.memory import allocate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Buffer

TEMPORARY = ".minetorch-tmp-"
"""How the names of temporary files begin; a listing leaves them out."""

_BUFFER = 1 << 20
_FORWARD = 8 << 20
_EXCLUSIVE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class LocalDisk:
    """Files by their absolute paths. Raises what the operating system raises."""

    def read(self, path: str) -> bytes:
        """The whole file."""
        return Path(path).read_bytes()

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Some bytes of the file."""
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def read_large(self, path: str, size: int, done: Callable[[memoryview], object]) -> memoryview:
        """The file's first `size` bytes, or all there are; `done` is given piece after piece."""
        content, at = allocate(size), 0
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(content[at : at + _BUFFER]):
                done(content[at : at + count])
                at += count
        return content[:at]

    def open_read(self, path: str) -> BinaryIO:
        """The file, open for reading from its start."""
        return open(path, "rb")

    def write(self, path: str, data: bytes) -> None:
        """Replace the file atomically and durably."""
        self.write_stream(path, lambda file: file.write(data))

    def write_stream(self, path: str, write: Callable[[BinaryIO], object], expected: int = 0) -> None:
        """Replace the file atomically and durably with what `write` writes."""
        target = Path(path)
        with _temporary(target, write) as temporary:
            temporary.replace(target)
        _sync_folder(target.parent)

    def create(self, path: str, data: bytes) -> None:
        """Create the file with all its content at once; FileExistsError if there is one."""
        target = Path(path)
        with _temporary(target, lambda file: file.write(data)) as temporary:
            try:
                target.hardlink_to(temporary)
            except OSError as err:
                if err.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                    raise
                _write_new(target, lambda file: file.write(data))  # no hard links here: exclusive, but not at once
        _sync_folder(target.parent)

    def list(self, path: str) -> list[str]:
        """Names of the files and folders directly in a folder; FileNotFoundError if there is none."""
        return [entry.name for entry in Path(path).iterdir() if not entry.name.startswith(TEMPORARY)]

    def has_folder(self, path: str) -> bool:
        """Whether a folder exists."""
        return Path(path).is_dir()

    def entries(self, path: str) -> Sequence[Entry]:
        """The files and folders directly in a folder; FileNotFoundError if there is none."""
        with os.scandir(path) as found:
            entries = [_entry(item) for item in found if not item.name.startswith(TEMPORARY)]
        return [entry for entry in entries if entry is not None]

    def size(self, path: str) -> int:
        """Bytes of a file; FileNotFoundError if there is none."""
        if Path(path).is_dir():
            raise FileNotFoundError(errno.ENOENT, "it is a folder, not a file", path)
        return Path(path).stat().st_size

    def delete(self, path: str) -> None:
        """Delete a file; FileNotFoundError if there is none."""
        Path(path).unlink()

    def upload(self, local_path: str, path: str) -> None:
        """Copy a local file here, atomically and durably."""
        with open(local_path, "rb") as source:
            self.write_stream(path, lambda file: shutil.copyfileobj(source, file, _BUFFER))

    def unfinished(self, path: str) -> Sequence[Unfinished]:
        """Temporary files in a folder, which a dead writer, or one at work, has there."""
        try:
            with os.scandir(path) as found:
                entries = [_entry(item) for item in found if item.name.startswith(TEMPORARY)]
        except FileNotFoundError:
            return []
        return [Unfinished(entry.name, entry.modified) for entry in entries if entry and entry.modified is not None]

    def abort(self, path: str, unfinished: Unfinished) -> None:
        """Delete such a file."""
        Path(path).unlink(missing_ok=True)


def _entry(item: os.DirEntry[str]) -> Entry | None:
    try:
        status = item.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None  # deleted since the folder was read, which is no reason to call the folder missing
    return Entry(item.name, item.is_dir(), status.st_size, status.st_mtime, item.is_symlink())


@contextlib.contextmanager
def _temporary(target: Path, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
    """A complete, durable temporary file beside the target; gone afterwards unless it was moved."""
    _make_folder(target.parent)
    # Not derived from the target's name, to which nothing can be added when it is already as long as names may be.
    temporary = target.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    try:
        _write_new(temporary, write)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


class _Forwarding:
    """A file whose bytes go on to the disk while more of them come, and not all at the end, in fsync.

    512 MB and their fsync took 325 ms so, 415 ms without.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = 0
        self._forwarded = 0

    def write(self, data: Buffer) -> int:
        size = self._file.write(data)
        self._size += size
        if self._size - self._forwarded >= _FORWARD and hasattr(os, "posix_fadvise"):
            # Of pages that are not written yet, Linux takes this as the advice to begin.
            length = self._size - self._forwarded
            os.posix_fadvise(self._file.fileno(), self._forwarded, length, os.POSIX_FADV_DONTNEED)
            self._forwarded = self._size
        return size

    def flush(self) -> None:
        self._file.flush()


def _write_new(path: Path, write: Callable[[BinaryIO], object]) -> None:
    # 0o666 and not mkstemp's 0o600: the umask decides who else may read a run.
    with os.fdopen(os.open(path, _EXCLUSIVE, 0o666), "wb", buffering=_BUFFER) as file:
        write(cast("BinaryIO", _Forwarding(file)))
        file.flush()
        os.fsync(file.fileno())


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, durably: a file in a folder that is lost is lost too."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)  # another process may have been faster
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)
