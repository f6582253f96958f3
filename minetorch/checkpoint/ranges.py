"""Reads a large remote file by several ranges at once, each straight to its place in memory.

A storage's own client copies each byte some times on its way, and all of it on one thread; on a fast network that is
what limits a download. Where the file system can sign a URL, plain HTTP connections read from that instead, and
whatever fails there is read by the file system, which has the retries and the words.
"""

from __future__ import annotations

import http.client
import os
import ssl
import threading
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from fsspec import AbstractFileSystem

from minetorch.checkpoint.memory import allocate

if TYPE_CHECKING:
    from collections.abc import Callable

RANGE = 8 << 20
"""Bytes of a range."""

AT_ONCE = 8
"""Ranges on the way at the same time."""

_URL_LASTS_S = 3600
_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 20.0


def fetch(fs: Any, path: str, size: int, done: Callable[[memoryview], object]) -> memoryview:
    """The content of a file of a known size.

    Args:
        fs: an asynchronous fsspec file system.
        path: the file.
        size: its bytes.
        done: is called on this thread with piece after piece, in order, while later ones are still on their way.

    Raises:
        EOFError: the file is shorter.
    """
    content = allocate(size)
    pieces = [(start, content[start : start + RANGE]) for start in range(0, size, RANGE)]
    direct = _Direct.to(fs, path) if len(pieces) > AT_ONCE else None
    try:
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="minetorch-read") as pool:
            fetching = [pool.submit(_fetch_range, fs, direct, path, start, piece) for start, piece in pieces]
            try:
                for fetched, (_, piece) in zip(fetching, pieces, strict=True):
                    fetched.result()
                    done(piece)
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        if direct is not None:
            direct.close()
    return content


def _fetch_range(fs: Any, direct: _Direct | None, path: str, start: int, target: memoryview) -> None:
    if direct is not None and direct.read(start, target):
        return
    data = fs.cat_file(path, start=start, end=start + len(target))
    if len(data) != len(target):
        raise EOFError(f"{path} ends before byte {start + len(target)}")
    target[:] = data


class _Direct:
    """Reads ranges from a signed URL, with a connection for each thread.

    It is given up at the first failure if it has never worked: a proxy, a certificate or a signature of another kind
    would make every range fail, some of them only after a time.
    """

    def __init__(self, url: str, context: ssl.SSLContext | None) -> None:
        parts = urllib.parse.urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        self._context = context
        self._threads = threading.local()
        self._connections: list[http.client.HTTPConnection] = []
        self._has_worked = False
        self._is_given_up = False

    @classmethod
    def to(cls, fs: Any, path: str) -> _Direct | None:
        """The reader of a file; None where the file system signs no URLs, or a proxy stands between."""
        try:
            _sign_as_requests_are(fs)
            url = fs.sign(path, expiration=_URL_LASTS_S)
            parts = urllib.parse.urlsplit(url)
            if parts.scheme not in ("http", "https") or _goes_by_proxy(fs, parts):
                return None
            return cls(url, _tls(fs) if parts.scheme == "https" else None)
        except Exception:  # of another storage, or of credentials that cannot sign: it can do without
            return None

    def read(self, start: int, target: memoryview) -> bool:
        """Fill the target from a place in the file on; False if that failed."""
        if self._is_given_up:
            return False
        try:
            self._read(start, target)
        except Exception:
            self._is_given_up = not self._has_worked
            self._drop()
            return False
        self._has_worked = True
        return True

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            connection.close()

    def _read(self, start: int, target: memoryview) -> None:
        connection = self._connect()
        connection.request("GET", self._target, headers={"Range": f"bytes={start}-{start + len(target) - 1}"})
        answer = connection.getresponse()
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT or answer.length != len(target):
            raise EOFError(f"status {answer.status}, {answer.length} bytes")
        at = 0
        while at < len(target):
            count = answer.readinto(target[at:])
            if not count:
                raise EOFError("the answer is too short")
            at += count

    def _connect(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._threads, "connection", None)
        if connection is None:
            if self._context is None:
                connection = http.client.HTTPConnection(self._host, self._port, timeout=_CONNECT_TIMEOUT_S)
            else:
                connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=_CONNECT_TIMEOUT_S, context=self._context
                )
            connection.connect()
            connection.sock.settimeout(_READ_TIMEOUT_S)
            self._threads.connection = connection
            self._connections.append(connection)
        return connection

    def _drop(self) -> None:
        """Leave a connection that may still have the rest of an answer on it."""
        connection = getattr(self._threads, "connection", None)
        if connection is not None:
            connection.close()
            self._threads.connection = None


def _sign_as_requests_are(fs: Any) -> None:
    """Have botocore sign S3's URLs in version 4, too: many regions' are in version 2, which no newer bucket takes."""
    if isinstance(fs, AbstractFileSystem) and "s3" in fs.protocol:
        fs.s3.meta.events.register_first("choose-signer.s3.GetObject", _keep_version_4, unique_id=_keep_version_4)


def _keep_version_4(signature_version: str, **_: object) -> str | None:
    return "s3v4-query" if signature_version in ("v4-query", "s3v4-query") else None


def _goes_by_proxy(fs: Any, url: urllib.parse.SplitResult) -> bool:
    configured = (getattr(fs, "config_kwargs", None) or {}).get("proxies")
    of_environment = url.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(url.netloc)
    return bool(configured or of_environment)


def _tls(fs: Any) -> ssl.SSLContext:
    """What the file system itself would trust."""
    verify = (getattr(fs, "client_kwargs", None) or {}).get("verify", os.environ.get("AWS_CA_BUNDLE"))
    context = ssl.create_default_context(cafile=verify if isinstance(verify, str) else None)
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
