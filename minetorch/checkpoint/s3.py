"""What S3 can do that fsspec's interface has no words for: parts uploaded as they come, several at once.

It speaks through the client of an `s3fs.S3FileSystem`, whose credentials, endpoint, settings and retries it has
thereby. Everything else a store does with S3 goes through fsspec.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from concurrent.futures import Future

    from typing_extensions import Buffer

PART = 8 << 20
"""Bytes of a part, at least; S3 takes no fewer than 5 MiB."""

MOST_PARTS = 10_000
"""S3 takes no more parts than these."""

AT_ONCE = 8
"""Parts on the way at the same time, each of which is held in memory."""


@dataclass(frozen=True)
class Upload:
    """A multipart upload that was neither completed nor aborted."""

    key: str
    id: str
    initiated: float
    """Unix time in seconds."""


class PartsUpload:
    """A file on its way to S3, which appears there by `commit`. One thread writes to it."""

    def __init__(self, fs: Any, path: str, expected: int = 0) -> None:
        """Nothing is sent yet.

        Args:
            fs: the `S3FileSystem`.
            path: bucket and key.
            expected: about how many bytes will come. More is well, up to a few times 80 GB.
        """
        self._fs = fs
        self._bucket, self._key, _ = fs.split_path(path)
        self._path = path
        # All parts have one size: Cloudflare's R2 demands it.
        self._part_size = max(PART, -(-expected * 5 // 4 // MOST_PARTS))
        self._part = bytearray()
        self._size = 0
        self._id: str | None = None
        self._sent: list[Future[Any]] = []
        self._free = threading.Semaphore(AT_ONCE)

    def write(self, data: Buffer) -> int:
        """Take some bytes; they may be changed afterwards."""
        view = memoryview(data).cast("B")
        at = 0
        while at < len(view):
            taken = view[at : at + self._part_size - len(self._part)]
            self._part += taken
            at += len(taken)
            if len(self._part) == self._part_size:
                self._send_part()
        self._size += len(view)
        return len(view)

    def flush(self) -> None:
        """Nothing: what is not committed is not there."""

    def commit(self) -> None:
        """Make the file appear."""
        if self._id is None:
            self._fs.pipe_file(self._path, bytes(self._part))
            return
        if self._part:
            self._send_part()
        parts = [{"PartNumber": number, "ETag": sent.result()["ETag"]} for number, sent in enumerate(self._sent, 1)]
        try:
            self._call(
                "complete_multipart_upload",
                UploadId=self._id,
                MultipartUpload={"Parts": parts},
            )
        except OSError:
            # Where the answer to the first try was lost, the second finds no such upload: it is complete.
            if not self._is_there():
                raise
        self._fs.invalidate_cache(self._path)

    def abort(self) -> None:
        """Give it up. What was sent is deleted, if the storage can be reached."""
        for sent in self._sent:
            sent.cancel()
        for sent in self._sent:
            with suppress(Exception, asyncio.CancelledError):
                sent.result()
        if self._id is not None:
            with suppress(Exception):
                self._call("abort_multipart_upload", UploadId=self._id)

    def _send_part(self) -> None:
        if self._id is None:
            self._id = self._call("create_multipart_upload")["UploadId"]
        self._free.acquire()
        self._raise_failure()
        part, self._part = self._part, bytearray()
        sent = _start(
            self._fs,
            self._fs._call_s3(
                "upload_part",
                Bucket=self._bucket,
                Key=self._key,
                UploadId=self._id,
                PartNumber=len(self._sent) + 1,
                Body=part,
            ),
        )
        sent.add_done_callback(lambda _: self._free.release())
        self._sent.append(sent)

    def _raise_failure(self) -> None:
        for sent in self._sent:
            if sent.done():
                sent.result()

    def _is_there(self) -> bool:
        self._fs.invalidate_cache(self._fs._parent(self._path))
        try:
            return int(self._fs.info(self._path)["size"]) == self._size
        except OSError:
            return False

    def _call(self, method: str, **arguments: Any) -> Any:
        return _start(self._fs, self._fs._call_s3(method, Bucket=self._bucket, Key=self._key, **arguments)).result()


def create(fs: Any, path: str, data: bytes) -> None:
    """Create a small file where there is none.

    Some servers take the condition with a plain PUT only (Ceph), others with a multipart upload only (Swift).

    Raises:
        FileExistsError: there is one.
        NotImplementedError: the server can do it in neither way.
    """
    try:
        fs.pipe_file(path, data, mode="create")
    except OSError as err:
        if not _is_unknown(err):
            raise
        _create_in_parts(fs, path, data)


def read(fs: Any, path: str) -> bytes:
    """A whole object, in one request: newer releases of s3fs ask for its size first, unless they are told not to."""
    in_one = {"max_concurrency": 1} if "max_concurrency" in inspect.signature(fs.cat_file).parameters else {}
    return bytes(fs.cat_file(path, **in_one))


def objects(fs: Any, folder: str, most_pages: int) -> list[tuple[str, int, float]] | None:
    """All objects below a folder, with 1,000 of them a request; None if that takes more than `most_pages` requests.

    Returns:
        The key below the folder, the size in bytes and the Unix time of the last change of each.
    """
    bucket, prefix, _ = fs.split_path(folder)
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    found: list[tuple[str, int, float]] = []
    token: dict[str, str] = {}
    for _ in range(most_pages):
        page = _start(fs, fs._call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **token)).result()
        for item in page.get("Contents", ()):
            found.append((item["Key"].removeprefix(prefix), int(item["Size"]), item["LastModified"].timestamp()))
        if not page.get("IsTruncated"):
            return found
        token = {"ContinuationToken": page["NextContinuationToken"]}
    return None


def uploads(fs: Any, folder: str) -> Iterator[Upload]:
    """The unfinished uploads of files directly in a folder."""
    bucket, prefix, _ = fs.split_path(folder)
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    marker: dict[str, str] = {}
    while True:
        page = _start(fs, fs._call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **marker)).result()
        for upload in page.get("Uploads", ()):
            name = upload["Key"].removeprefix(prefix)
            if upload["Key"].startswith(prefix) and "/" not in name:
                yield Upload(name, upload["UploadId"], upload["Initiated"].timestamp())
        if not page.get("IsTruncated") or not page.get("NextKeyMarker"):
            return
        marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page.get("NextUploadIdMarker", "")}


def abort(fs: Any, path: str, upload_id: str) -> None:
    """Delete an unfinished upload; one that is not there any more is as good as deleted."""
    bucket, key, _ = fs.split_path(path)
    with suppress(FileNotFoundError):
        _start(fs, fs._call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload_id)).result()


def _create_in_parts(fs: Any, path: str, data: bytes) -> None:
    bucket, key, _ = fs.split_path(path)

    def call(method: str, **arguments: Any) -> Any:
        return _start(fs, fs._call_s3(method, Bucket=bucket, Key=key, **arguments)).result()

    upload = call("create_multipart_upload")["UploadId"]
    try:
        part = call("upload_part", UploadId=upload, PartNumber=1, Body=data)
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        call("complete_multipart_upload", UploadId=upload, MultipartUpload=parts, IfNoneMatch="*")
    except OSError as err:
        with suppress(Exception):
            call("abort_multipart_upload", UploadId=upload)
        if _is_unknown(err):
            raise NotImplementedError(f"{path} cannot be created only where there is none") from err
        raise
    finally:
        fs.invalidate_cache(path)


def _is_unknown(err: OSError) -> bool:
    """Whether the server does not know the condition."""
    response = getattr(err.__cause__, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return err.errno == errno.ENOSYS or status == 501


def _start(fs: Any, call: Coroutine[Any, Any, Any]) -> Future[Any]:
    """Run something of the client's in its own thread, where its event loop is."""
    return asyncio.run_coroutine_threadsafe(call, fs.loop)
