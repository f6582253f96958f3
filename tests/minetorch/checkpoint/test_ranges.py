"""Large remote files come by several connections at once, past the storage's own client where that can be."""

from __future__ import annotations

import random
import re
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import trustme
from fsspec.implementations.http import HTTPFileSystem

from minetorch.checkpoint import Store, ranges

DATA = random.Random(1).randbytes(20_500)
COUNT = 21


class Server(ThreadingHTTPServer):
    """A storage with one file, which answers a signed request as `answer` says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Callable[[Handler, int, int], None] = Handler.send
        self.signed: list[int] = []
        self.unsigned: list[int] = []
        self.connections: set[tuple[str, int]] = set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients break off here, and certificates are refused."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """Answer a range."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert found is not None
        start, stop = int(found[1]), int(found[2]) + 1
        if self.path.endswith("?signature=good"):
            self.server.signed.append(start)
            self.server.connections.add(self.client_address)
            self.server.answer(self, start, stop)
        else:
            self.server.unsigned.append(start)
            self.send(start, stop)

    def send(self, start: int, stop: int, status: int = 206, most: int | None = None) -> None:
        """Send the range, or less of it than is announced."""
        body = DATA[start:stop]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(DATA)}")
        self.end_headers()
        self.wfile.write(body[:most])

    def break_off(self) -> None:
        """End the connection here."""
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class Signing(HTTPFileSystem):  # type: ignore[misc]
    """A file system that can sign."""

    def sign(self, path: str, expiration: int | None = None, **kwargs: Any) -> str:
        """The URL with a signature."""
        return f"{path}?signature=good"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "RANGE", 1000)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def fetch(server: Server, fs: Any, scheme: str = "http") -> None:
    pieces: list[bytes] = []
    url = f"{scheme}://127.0.0.1:{server.server_port}/file"
    content = ranges.fetch(fs, url, len(DATA), lambda piece: pieces.append(bytes(piece)))
    assert content == DATA == b"".join(pieces)


def test_reads_straight_from_a_signed_url_by_a_few_connections(server: Server) -> None:
    fetch(server, Signing(skip_instance_cache=True))
    assert sorted(server.signed) == list(range(0, len(DATA), 1000))
    assert not server.unsigned
    assert len(server.connections) <= ranges.AT_ONCE


def test_a_file_system_that_signs_nothing_reads_itself(server: Server) -> None:
    fetch(server, HTTPFileSystem(skip_instance_cache=True))
    assert len(server.unsigned) == COUNT


def test_a_signature_that_is_refused_is_tried_by_each_connection_once_at_most(server: Server) -> None:
    server.answer = lambda handler, start, stop: handler.send(start, stop, status=403)
    fetch(server, Signing(skip_instance_cache=True))
    assert 1 <= len(server.signed) <= ranges.AT_ONCE
    assert len(server.unsigned) == COUNT


def test_a_server_without_ranges_is_not_believed(server: Server) -> None:
    server.answer = lambda handler, start, stop: handler.send(0, len(DATA), status=200)
    fetch(server, Signing(skip_instance_cache=True))
    assert len(server.unsigned) == COUNT


def test_what_breaks_off_on_its_way_is_fetched_by_the_file_system(server: Server) -> None:
    def answer(handler: Handler, start: int, stop: int) -> None:
        if start % 3000 == 1000:
            handler.send(start, stop, most=500)
            handler.break_off()
        else:
            handler.send(start, stop)

    server.answer = answer
    fetch(server, Signing(skip_instance_cache=True))
    assert set(server.unsigned) >= {start for start in range(0, len(DATA), 1000) if start % 3000 == 1000}


def test_a_server_that_falls_silent_is_left_after_a_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_READ_TIMEOUT_S", 0.2)
    silence = threading.Event()

    def answer(handler: Handler, start: int, stop: int) -> None:
        handler.send(start, stop, most=10)
        silence.wait(10)
        handler.break_off()

    server.answer = answer
    try:
        fetch(server, Signing(skip_instance_cache=True))
    finally:
        silence.set()
    assert len(server.unsigned) == COUNT


@pytest.mark.parametrize("config", ["environment", "file system"])
def test_a_proxy_is_not_bypassed(server: Server, monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    fs = Signing(skip_instance_cache=True)
    if config == "environment":
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    else:
        fs.config_kwargs = {"proxies": {"http": "http://127.0.0.1:9"}}
    fetch(server, fs)
    assert not server.signed


def trusting(authority: trustme.CA, trusts: bool) -> Signing:
    """A file system that trusts the authority; its own requests always do."""
    context = ssl.create_default_context()
    authority.configure_trust(context)

    async def get_client(**kwargs: Any) -> Any:
        import aiohttp

        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context))

    return Signing(skip_instance_cache=True, get_client=get_client, client_kwargs={})


@pytest.mark.parametrize("verify", ["bundle", "environment", "no", "default"])
def test_trusts_whom_the_file_system_trusts(
    server: Server, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, verify: str
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(ours)
    server.socket = ours.wrap_socket(server.socket, server_side=True)
    fs = trusting(authority, verify != "default")
    if verify == "environment":
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    elif verify != "default":
        fs.client_kwargs["verify"] = False if verify == "no" else str(tmp_path / "authority.pem")
    fetch(server, fs, "https")
    assert len(server.signed) == (0 if verify == "default" else COUNT)


def test_s3_is_read_straight_with_a_signature_of_version_4(
    aws: Any, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, targets, count = ranges._Direct.read, set(), []

    def counting(self: Any, start: int, target: memoryview) -> bool:
        targets.add(self._target)
        count.append(read(self, start, target))
        return count[-1]

    monkeypatch.setattr(ranges._Direct, "read", counting)
    store = Store.open(aws.url)
    store.write("x", DATA)
    ask(f"{s3_server.url}/moto-api/reset-auth", "inf")  # it fails over the check of any signed URL
    try:
        assert store.read_large("x", len(DATA), len) == DATA
    finally:
        ask(f"{s3_server.url}/moto-api/reset-auth", "0")
    assert count == [True] * COUNT
    assert all("X-Amz-Algorithm=AWS4-HMAC-SHA256" in target for target in targets)


def ask(url: str, body: str) -> None:
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "text/plain"})
    urllib.request.urlopen(request, timeout=10).close()
