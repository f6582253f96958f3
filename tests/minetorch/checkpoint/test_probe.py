"""The probe of a storage, on a disk, in memory and on a real S3 server process."""

import http.client
import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import s3fs

from minetorch.checkpoint.probe import main, probe
from minetorch.checkpoint.store import Store

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"


@pytest.fixture(scope="module")
def server():
    """The port of a moto server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 60
        while not _listens(port):
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < end, "the server does not listen"
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def s3(server, monkeypatch):
    """The environment of a client of that server, which has one bucket, ``runs``."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server}")
    _ask(server, "POST", "/moto-api/reset")
    _ask(server, "PUT", "/runs")
    s3fs.S3FileSystem.clear_instance_cache()  # it would go on with the address that it was first given
    yield server
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_disk(tmp_path):
    found = probe(tmp_path)
    assert found.ok
    assert found.exclusive is True
    assert found.url == str(tmp_path)
    assert list(found.seconds) == ["list", "write", "read", "create", "delete"]
    assert all(seconds >= 0 for seconds in found.seconds.values())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_yet_is_not_made(tmp_path):
    found = probe(f"file://{tmp_path}/runs ü/deep")
    assert (found.ok, found.url) == (True, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    found = probe(tmp_path / "file" / "below")
    assert not found.ok
    assert "is a file" in found.error
    assert (tmp_path / "file").read_text() == "mine"


def test_a_place_that_cannot_be_written_to():
    found = probe("/proc/self")
    assert not found.ok
    assert found.error.startswith("cannot write /proc/self/minetorch-probe-")
    assert (found.exclusive, found.left_behind) == (None, [])


@pytest.mark.parametrize("url", ["zork://somewhere", "ftp:", ""])
def test_no_url_at_all(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = probe(url)
    assert found.ok is (url == "ftp:")  # a folder of that name
    assert list(tmp_path.iterdir()) == []


def test_what_others_have_there_is_left_alone(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "log.txt").write_text("mine")
    assert probe(tmp_path).ok
    assert {path.name for path in tmp_path.iterdir()} == {"models", "log.txt"}


def test_a_file_that_cannot_be_deleted_is_named(tmp_path, monkeypatch):
    def refuse(self, path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("minetorch.checkpoint.local_disk.LocalDisk.delete", refuse)
    found = probe(tmp_path)
    assert not found.ok
    assert "Permission denied" in found.error
    assert sorted(found.left_behind) == sorted(str(path) for path in tmp_path.iterdir())
    assert len(found.left_behind) == 2


def test_s3(s3):
    found = probe("s3://runs/some/where")
    assert found.ok, found.error
    assert (found.exclusive, found.url) == (True, "s3://runs/some/where")
    assert "<Key>" not in _ask(s3, "GET", "/runs?list-type=2")


def test_a_bucket_that_is_not_there_is_not_made(s3):
    found = probe("s3://other/x")
    assert not found.ok
    assert "no such bucket" in found.error
    assert "other" not in _ask(s3, "GET", "/")


def test_a_server_on_which_two_writers_can_create_one_file(s3, monkeypatch):
    """As some S3-like servers do, it overlooks the condition on which the file is to be written."""
    with _Forgetful.serve(s3) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        found = probe("s3://runs/x")
    assert (found.ok, found.exclusive) == (True, False)
    assert "<Key>" not in _ask(s3, "GET", "/runs?list-type=2")


def test_a_server_that_refuses_to_create_exclusively(s3, monkeypatch):
    with _Forgetful.serve(s3, refuses=True) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        found = probe("s3://runs/x")
    assert (found.ok, found.exclusive) == (True, False)
    assert "cannot create" in found.exclusive_error
    assert "<Key>" not in _ask(s3, "GET", "/runs?list-type=2")


def test_the_command(s3, capsys):
    assert main(["s3://me:hidden@runs/x", "--json"]) == 1
    out = capsys.readouterr().out
    assert "hidden" not in out
    assert SECRET not in out
    assert main(["s3://runs/x", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["exclusive"], told["error"]) == (True, True, None)
    assert main(["s3://runs/x"]) == 0
    assert "exclusive yes" in capsys.readouterr().out


def test_a_probe_that_is_ended_deletes_what_it_wrote(tmp_path):
    """On a disk that takes its time to answer: a FIFO in its place would not be one, so the reading is held up."""
    code = (
        "import sys, time\n"
        "from minetorch.checkpoint import local_disk, probe\n"
        "def read(self, path):\n"
        "    print('reading', flush=True)\n"
        "    time.sleep(60)\n"
        "local_disk.LocalDisk.read = read\n"
        "sys.exit(probe.main([sys.argv[1]]))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"reading\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_folders_of_a_store(tmp_path, memory_url):
    assert Store.open(tmp_path).has_folder()
    assert not Store.open(tmp_path / "none").has_folder()
    assert Store.open(memory_url).has_folder()  # none are needed there


class _Forgetful(http.server.BaseHTTPRequestHandler):
    """Hands requests on to a server, without the condition that a file must not exist; or refuses such requests."""

    protocol_version = "HTTP/1.1"
    behind: int
    refuses: bool

    @classmethod
    def serve(cls, behind, refuses=False):
        handler = type("Handler", (cls,), {"behind": behind, "refuses": refuses})
        return _Running(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))

    def _pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        conditional = self.headers.get("If-None-Match") is not None
        if conditional and self.refuses:
            self._answer(501, {}, b"<Error><Code>NotImplemented</Code><Message>no</Message></Error>")
            return
        headers = {name: value for name, value in self.headers.items() if name != "If-None-Match"}
        connection = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=30)
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            self._answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def _answer(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass_on  # noqa: N815 - the base class's names

    def log_message(self, *_):
        pass


class _Running:
    def __init__(self, server):
        self._server, self._thread = server, threading.Thread(target=server.serve_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self._server.server_address[1]

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _ask(port, method, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()
