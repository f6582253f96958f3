"""The files of a store on a local (or mounted) file system.

Every write goes to a temporary file and is made durable before it takes the target's place, so that a reader, and a
machine that loses its power, sees the old file or the new one and never a part. The temporary file is in the folder of
the target or, once a start has claimed the run, in the folder of its `Permit`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from minetorch.checkpoint.entry import Entry, Unfinished
from minetorch.checkpoint.memory import allocate
from minetorch.checkpoint.permit import TEMPORARY, Permit, check_inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Buffer

_BUFFER = 1 << 20
_FORWARD = 8 << 20
_EXCLUSIVE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class LocalDisk:
    """Files by their absolute paths. Raises what the operating system raises."""

    def __init__(self) -> None:
        self.run: Path | None = None
        """The directory of a run that this process trains: no link in it may lead a write elsewhere."""
        self.permit: Permit | None = None
        """What this process may change the run's files with; None before it has claimed the run."""

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
        with self._temporary(target, write) as temporary:
            temporary.replace(target)
        _sync_folder(target.parent)

    def create(self, path: str, data: bytes) -> None:
        """Create the file with all its content at once; FileExistsError if there is one."""
        target = Path(path)
        with self._temporary(target, lambda file: file.write(data)) as temporary:
            try:
                target.hardlink_to(temporary)
            except OSError as err:
                if err.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                    raise
                _write_new(target, lambda file: file.write(data))  # no hard links here: exclusive, but not at once
        _sync_folder(target.parent)

    def create_open(self, path: str) -> BinaryIO:
        """Create the file and leave it open for writing; FileExistsError if there is one."""
        target = Path(path)
        temporary = self._new_name(target)
        file = os.fdopen(os.open(temporary, _EXCLUSIVE, 0o666), "wb")
        try:
            if target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            temporary.replace(target)
        except BaseException:
            file.close()
            temporary.unlink(missing_ok=True)
            raise
        return file

    def keep_beginning(self, path: str, size: int | None) -> None:
        """Replace the file by a copy of its first `size` bytes, or of all; by an empty file where there is none.

        What another process writes to the file that it has open is not in the copy.
        """

        def copy(file: BinaryIO) -> None:
            left = -1 if size is None else size
            try:
                source = open(path, "rb", opener=_open_no_link)  # noqa: SIM115
            except FileNotFoundError:
                return
            with source:
                while chunk := source.read(_BUFFER if left < 0 else min(_BUFFER, left)):
                    file.write(chunk)
                    left -= len(chunk) if left >= 0 else 0

        self.write_stream(path, copy)

    def link(self, path: str, to: str) -> None:
        """Replace the symbolic link atomically; FileExistsError if there is something else."""
        target = Path(path)
        if target.exists() and not target.is_symlink():
            raise FileExistsError("a file that Minetorch did not make stands there; it is left as it is")
        temporary = self._new_name(target)
        temporary.symlink_to(to)
        try:
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def make_folder(self, path: str) -> None:
        """Make a folder and its parents, durably: a file in a folder that is lost is lost too."""
        if self.permit is not None:
            self.permit.check()
        if self.run is not None:
            check_inside(path, self.run)
        self._make_folder(Path(path))

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
        target = Path(path)
        if self.permit is None or not target.parent.is_dir():
            target.unlink()
            return
        doomed = self._new_name(target)
        target.rename(doomed)
        doomed.unlink()

    def upload(self, local_path: str, path: str) -> None:
        """Copy a local file here, atomically and durably."""
        with open(local_path, "rb") as source:
            self.write_stream(path, lambda file: shutil.copyfileobj(source, file, _BUFFER))

    def unfinished(self, path: str) -> Sequence[Unfinished]:
        """Temporary files in a folder. One whose writer is at work is left out, where the file system can tell."""
        try:
            with os.scandir(path) as found:
                names = [item for item in found if item.name.startswith(TEMPORARY) and not item.is_dir()]
                entries = [(_entry(item), _is_abandoned(item)) for item in names]
        except FileNotFoundError:
            return []
        return [
            Unfinished(entry.name, entry.modified, is_abandoned=is_abandoned is True)
            for entry, is_abandoned in entries
            if entry and entry.modified is not None and is_abandoned is not False
        ]

    def abort(self, path: str, unfinished: Unfinished) -> None:
        """Delete such a file."""
        Path(path).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _temporary(self, target: Path, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
        """A complete, durable temporary file that can be renamed to the target; gone afterwards unless it was."""
        temporary = self._new_name(target)
        try:
            with _open_new(temporary) as file:
                write(cast("BinaryIO", _Forwarding(file)))
                file.flush()
                os.fsync(file.fileno())
                yield temporary  # while it is open, and so locked: see `_is_abandoned`
        finally:
            temporary.unlink(missing_ok=True)

    def _new_name(self, target: Path) -> Path:
        """The path of a new temporary file for the target, whose folder is there afterwards."""
        folder = target.parent
        self.make_folder(str(folder))
        folder = folder if self.permit is None else self.permit.folder_for(folder)
        # Not derived from the target's name, to which nothing can be added when it is already as long as names may be.
        return folder / f"{TEMPORARY}{secrets.token_hex(8)}"

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        if self.permit is not None and not self.permit.may_make(folder):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        if folder.parent != folder:
            self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True)  # another process may have been faster
        _sync_folder(folder.parent)


def _entry(item: os.DirEntry[str]) -> Entry | None:
    try:
        status = item.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None  # deleted since the folder was read, which is no reason to call the folder missing
    return Entry(item.name, item.is_dir(), status.st_size, status.st_mtime, item.is_symlink())


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
    with _open_new(path) as file:
        write(cast("BinaryIO", _Forwarding(file)))
        file.flush()
        os.fsync(file.fileno())


def _open_new(path: Path) -> BinaryIO:
    # 0o666 and not mkstemp's 0o600: the umask decides who else may read a run.
    file = os.fdopen(os.open(path, _EXCLUSIVE, 0o666), "wb", buffering=_BUFFER)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _is_abandoned(item: os.DirEntry[str]) -> bool | None:
    """Whether the process that wrote a temporary file has ended: its lock ended with it. None if that is unknown."""
    try:
        descriptor = os.open(item.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)
