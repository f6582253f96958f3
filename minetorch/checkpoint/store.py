"""Where a run's files live: a local folder or any storage that fsspec reaches. The only file that imports fsspec."""

from __future__ import annotations

import errno
import io
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar, cast

from minetorch.checkpoint import ranges, s3
from minetorch.checkpoint.entry import Entry, Unfinished
from minetorch.checkpoint.local_disk import LocalDisk
from minetorch.checkpoint.urls import checked_name, hider, shown, split_protocol
from minetorch.errors import ConfigurationError, StorageError, in_brief

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from typing_extensions import Buffer

    from minetorch.checkpoint.permit import Permit

_Names = list[str]  # because a method is called `list`
_Entries = list[Entry]
_Item = TypeVar("_Item")
_EXTRAS = {"s3": "s3", "s3a": "s3"}
# Where folders do not exist apart from the files in them. There, making one may call CreateBucket.
_WITHOUT_FOLDERS = frozenset({"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "r2"})
READERS = 16
"""Threads that read at the same time, where each read costs a round trip."""
_MOST_PAGES = 30
"""Requests, of 1,000 objects each, after which listing everything is given up: most of it may not be Minetorch's."""


class _Files(Protocol):
    """One kind of storage: `LocalDisk`, or `_RemoteFiles` for all that fsspec reaches. `Store.open` chooses one.

    Paths are whole paths. A missing file is a FileNotFoundError.
    """

    def read(self, path: str) -> bytes: ...
    def read_range(self, path: str, start: int, stop: int) -> bytes: ...
    def read_large(self, path: str, size: int, done: Callable[[memoryview], object]) -> memoryview: ...
    def open_read(self, path: str) -> BinaryIO: ...
    def write(self, path: str, data: bytes) -> None: ...
    def write_stream(self, path: str, write: Callable[[BinaryIO], object], expected: int) -> None: ...
    def create(self, path: str, data: bytes) -> None: ...
    def list(self, path: str) -> _Names: ...
    def has_folder(self, path: str) -> bool: ...
    def entries(self, path: str) -> Sequence[Entry]: ...
    def size(self, path: str) -> int: ...
    def delete(self, path: str) -> None: ...
    def upload(self, local_path: str, path: str) -> None: ...
    def unfinished(self, path: str) -> Sequence[Unfinished]: ...
    def abort(self, path: str, unfinished: Unfinished) -> None: ...


class Store:
    """The files of one run below one URL.

    Opening a store touches no storage and makes no client: that happens with the first call, because clients such
    as s3fs do not survive a fork. Every name is relative to the store. A missing file is a FileNotFoundError; all
    else that goes wrong in the storage is a StorageError with the storage's own words.
    """

    url: str
    """The place, for display: without passwords or signatures. An absolute path if it is local."""
    is_local: bool
    """Whether it is a folder of this machine's file system."""

    def __init__(self, files: _Files, root: str, url: str, is_local: bool, hide: Callable[[str], str]) -> None:
        """Use `Store.open`."""
        self._files = files
        self._root = root
        self._hide = hide
        self.url = url
        self.is_local = is_local

    @classmethod
    def open(cls, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Store:
        """The store at a path or URL.

        Args:
            url: a local path (`~` is expanded), `file://…`, or any URL that fsspec knows, such as `s3://bucket/runs`.
            storage_options: what fsspec's file system for this URL takes, such as keys or an endpoint. Not used
                for a local path.

        Raises:
            ConfigurationError: the URL is not one, or the package for its protocol is not installed.
        """
        text = os.fspath(url) if isinstance(url, str | os.PathLike) else None
        if not isinstance(text, str) or not text.strip() or "\0" in text or not _is_encodable(text):
            given = shown(text) if isinstance(text, str) else url
            raise ConfigurationError(f"a path or URL is needed, not {in_brief(given)}")
        protocol, rest = split_protocol(text)
        if protocol is None:
            # Not resolve(): a user who reaches a disk through a link goes on calling it by the link's name.
            path = os.path.normpath(_absolute(rest))
            return cls(LocalDisk(), path, path, True, str)
        options = dict(storage_options or {})
        _check_protocol(protocol, text)
        files = _RemoteFiles(text, protocol, options)
        return cls(files, "", shown(text), False, hider(text, options))

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def child(self, *parts: str) -> Store:
        """The store one or more folders below.

        Raises:
            ConfigurationError: a part is empty, absolute, or leads outside.
        """
        below = "/".join(checked_name(part) for part in parts)
        return Store(self._files, self._path(below), f"{self.url.rstrip('/')}/{below}", self.is_local, self._hide)

    @property
    def name(self) -> str:
        """The last part of the place; "" at the top of a local disk."""
        return self.url.rstrip("/").rpartition("/")[2]

    def parent(self) -> Store | None:
        """The folder that this one is in; None at the top of a storage."""
        files = self._files
        if not isinstance(files, _RemoteFiles):
            folder = str(Path(self._root).parent)
            return None if folder == self._root else Store.open(folder)
        if self._root:
            return Store(files, self._root.rpartition("/")[0], self.url.rpartition("/")[0], False, self._hide)
        folder = files.url.rstrip("/").rpartition("/")[0]
        return None if folder.endswith("/") else Store.open(folder, files.options)

    def locate(self, url: str) -> tuple[Store, str]:
        """The folder, as a store, and the name of a file given by path or URL, links on a local disk followed.

        A URL of this store's own protocol is reached with this store's `storage_options`.
        """
        protocol, rest = split_protocol(url)
        if protocol is None:
            path = _absolute(rest).resolve()
            return Store.open(path.parent), path.name
        folder, _, name = url.rstrip("/").rpartition("/")
        files = self._files
        same = isinstance(files, _RemoteFiles) and files.protocol == protocol
        options = files.options if same and isinstance(files, _RemoteFiles) else None
        return Store.open(f"{folder}/" if folder.endswith("/") else folder, options), checked_name(name)

    def local_path(self, name: str = "") -> Path:
        """The path of a file, or of the store itself; only when `is_local`."""
        if not self.is_local:
            raise StorageError(f"{self.url_of(name)} has no path on this machine")
        return Path(self._path(checked_name(name)) if name else self._root)

    def url_of(self, name: str = "") -> str:
        """The full path of a file in a local store, its URL in another; for display and for users to copy."""
        if not self.is_local:
            name = name.partition("?")[0]  # a signature, of a file that was given by a signed URL
        return f"{self.url.rstrip('/')}/{name}" if name else self.url

    def read(self, name: str) -> bytes:
        """The content of a file."""
        with self._translated("read", name):
            return self._files.read(self._path(checked_name(name)))

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """The contents of small files, fetched side by side where each costs a round trip; missing ones left out."""

        def read(name: str) -> bytes | None:
            try:
                return self.read(name)
            except FileNotFoundError:
                return None

        names = list(names)
        if len(names) > 1 and self.is_parallel:
            with ThreadPoolExecutor(READERS, thread_name_prefix="minetorch-read") as pool:
                contents = list(pool.map(read, names))
        else:
            contents = [read(name) for name in names]
        return {name: data for name, data in zip(names, contents, strict=True) if data is not None}

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """The bytes of a file from `start` up to `stop`, both within it."""
        with self._translated("read", name):
            return self._files.read_range(self._path(checked_name(name)), start, stop) if start < stop else b""

    def read_large(self, name: str, size: int, done: Callable[[memoryview], object]) -> memoryview:
        """The content of a file of this size, fetched by several ranges at once where each costs a round trip.

        Args:
            name: the file.
            size: its bytes.
            done: is called with piece after piece, in order, while later ones may still be on their way.
        """
        with self._translated("read", name):
            return self._files.read_large(self._path(checked_name(name)), size, done)

    def open_read(self, name: str) -> BinaryIO:
        """A file, open for reading from its start."""
        with self._translated("read", name):
            return self._files.open_read(self._path(checked_name(name)))

    def write(self, name: str, data: bytes) -> None:
        """Replace a file atomically: a reader sees the old content or the new. Durable when it returns."""
        with self._translated("write", name):
            self._files.write(self._path(checked_name(name)), data)

    def write_stream(self, name: str, write: Callable[[BinaryIO], object], expected: int = 0) -> None:
        """Replace a file atomically with what `write` writes to the file it is given (which cannot seek).

        Args:
            name: the file.
            write: is called once, and writes.
            expected: about how many bytes it will write.
        """
        with self._translated("write", name):
            self._files.write_stream(self._path(checked_name(name)), _unharmed(write), expected)

    def create(self, name: str, data: bytes) -> None:
        """Create a file that must not exist yet.

        Raises:
            FileExistsError: it does. If an answer was lost, it may be this very call that made it.
            NotImplementedError: the storage cannot create a file only where there is none.
        """
        with self._translated("create", name):
            self._files.create(self._path(checked_name(name)), data)

    def create_open(self, name: str) -> BinaryIO:
        """Create a file that must not exist yet, open for writing; only when `is_local`."""
        with self._translated("create", name):
            return self._disk(name).create_open(self._path(checked_name(name)))

    def keep_beginning(self, name: str, size: int | None) -> None:
        """Replace a file by a copy of its first `size` bytes (None: of all); only when `is_local`.

        Where there is no such file, it is empty afterwards. A process that has the old file open does not change the
        copy.
        """
        with self._translated("write", name):
            self._disk(name).keep_beginning(self._path(checked_name(name)), size)

    def link(self, name: str, to: str) -> None:
        """Make or replace a symbolic link to a file in the same folder; only when `is_local`."""
        with self._translated("write", name):
            self._disk(name).link(self._path(checked_name(name)), to)

    def make_folder(self) -> None:
        """Make the store's own folder, with its parents; only when `is_local`."""
        with self._translated("make", ""):
            self._disk("").make_folder(self._root)

    def confine(self, run: Path, permit: Permit | None = None) -> None:
        """From now on change nothing outside of a run's directory, and only as long as the permit is valid.

        This holds for all stores that share their origin with this one, by `child`. It changes nothing for a store
        that is not local.

        Args:
            run: the run's directory.
            permit: of the start of the run that this process is; None for a process that has not claimed it.
        """
        if isinstance(self._files, LocalDisk):
            self._files.run, self._files.permit = run, permit

    def list(self, prefix: str = "") -> _Names:
        """Sorted names of the files and folders directly in the store that begin with `prefix`.

        A folder that does not exist is empty; a folder that cannot be listed is a StorageError, for "no checkpoints"
        would be a lie there.
        """
        return sorted(name for name in self._listed(self._files.list) if name.startswith(prefix))

    def entries(self) -> _Entries:
        """The files and folders directly in the store, by name, with their sizes and times; otherwise as `list`."""
        return sorted(self._listed(self._files.entries), key=lambda entry: entry.name)

    def tree(self) -> dict[str, _Entries] | None:
        """The folders below the store, by their paths ("" is its own), and what lies directly in each, at one moment.

        None where that takes too long, or where the storage cannot list more than a folder at a time: then list folder
        by folder, with `entries`.
        """
        files = self._files
        if not isinstance(files, _RemoteFiles):
            return None
        with self._translated("list", ""):
            try:
                return files.tree(self._root)
            except FileNotFoundError as err:
                if _says(err, "NoSuchBucket"):
                    raise StorageError(f"cannot list {self.url}: there is no such bucket") from None
                return {}

    def has_folder(self) -> bool:
        """Whether the store's own folder exists. True where folders do not exist apart from the files in them."""
        with self._translated("look at", ""):
            return self._files.has_folder(self._root)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def is_link(self, name: str) -> bool:
        """Whether the name is a symbolic link, which only a local disk has."""
        with self._translated("look at", name):
            return self.is_local and self.local_path(name).is_symlink()

    @property
    def is_parallel(self) -> bool:
        """Whether calls from several threads run side by side, where each costs a round trip."""
        return isinstance(self._files, _RemoteFiles) and self._files.is_asynchronous

    def size(self, name: str) -> int:
        """Bytes of a file."""
        with self._translated("look at", name):
            return self._files.size(self._path(checked_name(name)))

    def delete(self, name: str) -> None:
        """Delete a file; one that is not there is as good as deleted."""
        with self._translated("delete", name), suppress(FileNotFoundError):
            self._files.delete(self._path(checked_name(name)))

    def upload(self, local_path: str | os.PathLike[str], name: str) -> None:
        """Copy a local file into the store."""
        with self._translated("write", name):
            self._files.upload(os.fspath(local_path), self._path(checked_name(name)))

    def unfinished(self) -> Sequence[Unfinished]:
        """What writers that died left of files directly in the store, which no listing shows."""
        with self._translated("list", ""):
            return self._files.unfinished(self._root)

    def abort(self, unfinished: Unfinished) -> None:
        """Delete what a dead writer left; what is not there any more is as good as deleted."""
        with self._translated("delete", unfinished.name):
            self._files.abort(self._path(checked_name(unfinished.name)), unfinished)

    def _disk(self, name: str) -> LocalDisk:
        if not isinstance(self._files, LocalDisk):
            raise StorageError(f"{self.url_of(name)} has no path on this machine")
        return self._files

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if self._root else name

    def _listed(self, call: Callable[[str], Sequence[_Item]]) -> Sequence[_Item]:
        with self._translated("list", ""):
            try:
                return call(self._root)
            except FileNotFoundError as err:
                if _says(err, "NoSuchBucket"):
                    raise StorageError(f"cannot list {self.url}: there is no such bucket") from None
                return []

    @contextmanager
    def _translated(self, verb: str, name: str) -> Iterator[None]:
        """Whatever a storage raises, as an error of ours that names the file and keeps the storage's words."""
        try:
            yield
        except (StorageError, ConfigurationError):
            raise
        except _WriterError as err:
            raise err.original from None
        except Exception as err:
            cause = err if self.is_local else None  # a remote one's words may hold secrets
            if isinstance(err, FileNotFoundError) and verb in ("read", "look at"):
                raise FileNotFoundError(f"{self.url_of(name)} does not exist") from cause
            if verb == "create" and _exists_already(err):
                raise FileExistsError(f"{self.url_of(name)} exists already") from cause
            if verb == "create" and isinstance(err, NotImplementedError | ValueError):
                raise NotImplementedError(f"{self.url} cannot create a file only where there is none") from cause
            words = self._hide(str(err).strip()) or "it gave no reason"
            failure = StorageError(f"cannot {verb} {self.url_of(name)}: {words} ({type(err).__name__})")
            failure.is_lasting = is_lasting(err)
            raise failure from cause


class _RemoteFiles:
    """Files in a storage that fsspec reaches, by their paths below one URL. Its client is made by the first call."""

    def __init__(self, url: str, protocol: str, options: dict[str, Any]) -> None:
        self.protocol = protocol
        self.options = options
        self.url = url
        self._opened: tuple[Any, str] | None = None
        self._folders: set[str] = set()

    @property
    def is_asynchronous(self) -> bool:
        """Whether calls from several threads run side by side."""
        return bool(self._at("")[0].async_impl)

    def read(self, path: str) -> bytes:
        """The whole file."""
        fs, whole = self._at(path)
        if self._is_s3:
            return s3.read(fs, whole)
        fs.invalidate_cache(fs._parent(whole))
        return cast("bytes", fs.cat_file(whole))

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Some bytes of the file."""
        fs, whole = self._at(path)
        return cast("bytes", fs.cat_file(whole, start=start, end=stop))

    def read_large(self, path: str, size: int, done: Callable[[memoryview], object]) -> memoryview:
        """The whole file, of this size; `done` is given piece after piece."""
        fs, whole = self._at(path)
        if self.is_asynchronous:
            return ranges.fetch(fs, whole, size, done)
        content = memoryview(fs.cat_file(whole))
        done(content)
        return content

    def open_read(self, path: str) -> BinaryIO:
        """The file, open for reading from its start."""
        fs, whole = self._at(path)
        file = fs.open(whole, "rb")
        # fsspec's memory files have one position, shared by all who read them.
        return io.BytesIO(file.getvalue()) if isinstance(file, io.BytesIO) else cast("BinaryIO", file)

    def write(self, path: str, data: bytes) -> None:
        """Replace the file."""
        fs, whole = self._at(path)
        self._make_folder(fs, whole)
        fs.pipe_file(whole, data)

    def write_stream(self, path: str, write: Callable[[BinaryIO], object], expected: int) -> None:
        """Replace the file with what `write` writes."""
        if self._is_s3:
            fs, whole = self._at(path)
            upload = s3.PartsUpload(fs, whole, expected)
            try:
                write(cast("BinaryIO", upload))
                upload.commit()
            except BaseException:
                upload.abort()
                raise
            return
        # Gathered first, because closing an fsspec file publishes it, even when its writer failed half-way.
        buffer = io.BytesIO()
        write(buffer)
        self.write(path, buffer.getvalue())

    def create(self, path: str, data: bytes) -> None:
        """Create the file; FileExistsError if there is one."""
        fs, whole = self._at(path)
        self._make_folder(fs, whole)
        if self._is_s3:
            s3.create(fs, whole, data)
        else:
            fs.pipe_file(whole, data, mode="create")

    def list(self, path: str) -> _Names:
        """Names of the files and folders directly in a folder."""
        fs, whole = self._at(path)
        fs.invalidate_cache(whole)  # another process may have written since
        names = [entry.rstrip("/") for entry in fs.ls(whole, detail=False)]
        folder = fs._strip_protocol(whole).rstrip("/")
        return [name.rpartition("/")[2] for name in names if name != folder]

    def has_folder(self, path: str) -> bool:
        """Whether a folder exists, or need not."""
        if self.protocol in _WITHOUT_FOLDERS:
            return True
        fs, whole = self._at(path)
        return bool(fs.isdir(whole))

    def entries(self, path: str) -> Sequence[Entry]:
        """The files and folders directly in a folder."""
        fs, whole = self._at(path)
        fs.invalidate_cache(whole)
        folder = fs._strip_protocol(whole).rstrip("/")
        infos = ((info["name"].rstrip("/"), info) for info in fs.ls(whole, detail=True))
        return [
            Entry(name.rpartition("/")[2], info["type"] == "directory", int(info["size"] or 0), _modified(info))
            for name, info in infos
            if name != folder
        ]

    def tree(self, path: str) -> dict[str, _Entries] | None:
        """Everything below a folder, by folders; None where that is not to be had in a few requests."""
        if not self._is_s3:
            return None
        found = s3.objects(*self._at(path), most_pages=_MOST_PAGES)
        if found is None:
            return None
        folders: dict[str, dict[str, Entry]] = {"": {}}
        for key, size, modified in found:
            *above, name = key.split("/")
            for depth, folder in enumerate(above):
                inside = folders.setdefault("/".join(above[:depth]), {})
                inside.setdefault(folder, Entry(folder, True, 0, None))
            if name:  # a key that ends in a slash stands for a folder
                folders.setdefault("/".join(above), {})[name] = Entry(name, False, size, modified)
        return {folder: sorted(inside.values(), key=lambda entry: entry.name) for folder, inside in folders.items()}

    def size(self, path: str) -> int:
        """Bytes of a file."""
        fs, whole = self._at(path)
        fs.invalidate_cache(fs._parent(whole))
        # Not fs.exists(): it takes every error for "no".
        info = fs.info(whole)
        if info["type"] != "file":
            raise FileNotFoundError(f"{whole} is a folder, not a file")
        return int(info["size"])

    def delete(self, path: str) -> None:
        """Delete a file."""
        fs, whole = self._at(path)
        # Not fs.rm(): it expands wildcards, and deletes in bulk, which some servers cannot.
        fs.rm_file(whole)

    def upload(self, local_path: str, path: str) -> None:
        """Copy a local file here."""
        fs, whole = self._at(path)
        self._make_folder(fs, whole)
        fs.put_file(local_path, whole)

    def unfinished(self, path: str) -> Sequence[Unfinished]:
        """Uploads of files directly in a folder that were neither completed nor aborted."""
        if not self._is_s3:
            return []
        return [Unfinished(upload.key, upload.initiated, upload.id) for upload in s3.uploads(*self._at(path))]

    def abort(self, path: str, unfinished: Unfinished) -> None:
        """Delete such an upload."""
        s3.abort(*self._at(path), unfinished.id)

    @property
    def _is_s3(self) -> bool:
        return self.protocol in ("s3", "s3a")

    def _at(self, path: str) -> tuple[Any, str]:
        """The client, and the path as it wants it."""
        if self._opened is None:
            import fsspec.core

            fs, root = fsspec.core.url_to_fs(self.url, **self.options)
            self._opened = fs, root.rstrip("/")
        fs, root = self._opened
        return fs, f"{root}/{path}" if path else root

    def _make_folder(self, fs: Any, whole: str) -> None:
        folder = fs._parent(whole)
        if self.protocol not in _WITHOUT_FOLDERS and folder not in self._folders:
            fs.makedirs(folder, exist_ok=True)
            self._folders.add(folder)


class _WriterError(Exception):
    """Carries what a writer raised through the storage's own error handling, so that it is not taken for it."""

    def __init__(self, original: Exception) -> None:
        super().__init__(str(original))
        self.original = original


class _Guarded:
    """A file to write to that remembers why the storage refused, whatever its writer makes of that."""

    failure: Exception | None = None

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: Buffer) -> int:
        try:
            return self._file.write(data)
        except Exception as err:
            self.failure = self.failure or err
            raise

    def flush(self) -> None:
        self._file.flush()


def _unharmed(write: Callable[[BinaryIO], object]) -> Callable[[BinaryIO], None]:
    def guarded(file: BinaryIO) -> None:
        guard = _Guarded(file)
        try:
            write(cast("BinaryIO", guard))
        except Exception as err:
            # torch hides a full disk behind "unexpected pos".
            if guard.failure is not None:
                raise guard.failure from None
            raise _WriterError(err) from err

    return guarded


def _is_encodable(path: str) -> bool:
    """Whether the system has bytes for it: not for lone surrogates, as a JSON file may have."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def _absolute(path: str) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise ConfigurationError(f"{path}: there is no such user, or no home folder; give the whole path") from None
    except OSError:
        raise ConfigurationError(f"{path}: the folder that you are in is gone; cd to one that is there") from None


def _check_protocol(protocol: str, url: str) -> None:
    import fsspec

    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as err:
        extra = _EXTRAS.get(protocol)
        cure = f"pip install 'minetorch[{extra}]'" if extra else str(err)
        raise ConfigurationError(f"{shown(url)} needs a package that is not installed: {cure}") from err
    except ValueError as err:
        raise ConfigurationError(
            f"{shown(url)}: no storage is known as {protocol}://; give a local path, s3://bucket/folder, or another "
            "URL of a protocol that fsspec knows"
        ) from err


def _modified(info: Mapping[str, Any]) -> float | None:
    """When a file was last written, by whatever name its file system tells it."""
    for key in ("LastModified", "mtime", "last_modified", "updated", "modified", "created"):
        value = info.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None


_LASTING = frozenset({errno.EROFS, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP})
"""Errors of a local disk that another try meets again, apart from those that have a class of their own."""


def is_lasting(err: Exception) -> bool:
    """Whether it is of no use to try again after this error of a storage."""
    if isinstance(err, PermissionError | NotADirectoryError) or _says(err, "NoSuchBucket"):
        return True
    if isinstance(err, OSError) and err.errno in _LASTING:
        return True
    return type(err).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")  # botocore's


def _says(err: BaseException, code: str) -> bool:
    """Whether an S3 server's answer, which s3fs keeps as the cause, has this code or HTTP status."""
    response = getattr(err.__cause__, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return code in (response.get("Error", {}).get("Code"), str(status))


def _exists_already(err: Exception) -> bool:
    # s3fs: FileExistsError or, by the server's wording of the refused condition, OSError(EINVAL).
    return isinstance(err, FileExistsError) or _says(err, "412")
