import asyncio
import fcntl
import os
import pty
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
import tty

import pytest

from minetorch_launch.output.terminal import Stream, terminal_columns, wants_colour

KINDS = ["pipe", "terminal", "socket"]


class Place:
    """Where a launcher's stream may lead: ``fd`` is the launcher's end, ``reader`` the other."""

    def __init__(self, kind):
        if kind == "pipe":
            self.reader, self.fd = os.pipe()
        elif kind == "terminal":
            self.reader, self.fd = pty.openpty()
            tty.setraw(self.fd)
        else:
            self.reader, self.fd = (end.detach() for end in socket.socketpair())

    def read(self, size):
        """Read this many bytes; fewer at the end."""
        seen = bytearray()
        while len(seen) < size and (data := os.read(self.reader, 8192)):
            seen += data
        return bytes(seen)

    def leave(self):
        os.close(self.reader)
        self.reader = -1

    def close(self):
        for fd in (self.reader, self.fd):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def place(request):
    place = Place(request.param)
    yield place
    place.close()


def written(stream):
    """Wait until no data waits."""

    async def wait():
        while stream.waiting:
            await asyncio.sleep(0.01)

    return asyncio.wait_for(wait(), 20)


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_data_waits_for_the_reader_and_arrives_whole(place):
    data = b"".join(b"line %d\n" % number for number in range(100_000))
    flags = fcntl.fcntl(place.fd, fcntl.F_GETFL)

    async def scenario():
        progress = []
        stream = Stream(place.fd, lambda: progress.append(len(stream.waiting)))
        began = time.monotonic()
        for start in range(0, len(data), 10_000):
            stream.write(data[start : start + 10_000])
        assert time.monotonic() - began < 5
        assert fcntl.fcntl(place.fd, fcntl.F_GETFL) == flags  # other programs share them
        assert 0 < len(stream.waiting) <= len(data)
        began = time.process_time()
        await asyncio.sleep(0.5)  # nobody reads
        assert time.process_time() - began < 0.2
        assert len(progress) <= 3  # a terminal's driver may still take some
        reading = asyncio.create_task(asyncio.to_thread(place.read, len(data)))
        await written(stream)
        assert await reading == data
        assert progress == sorted(progress, reverse=True)
        assert progress[-1] == 0
        stream.close()

    asyncio.run(scenario())
    assert fcntl.fcntl(place.fd, fcntl.F_GETFL) == flags


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_a_reader_that_has_left_costs_the_data_only(place):
    async def scenario():
        stream = Stream(place.fd, lambda: None)
        stream.write(b"x" * 1_000_000)
        assert stream.waiting
        place.leave()
        await written(stream)
        stream.write(b"into the void\n")
        assert not stream.waiting
        stream.close()

    asyncio.run(scenario())


def test_a_file_is_written_where_its_other_writers_are(tmp_path):
    fd = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"before\n")
    stream = Stream(fd, lambda: None)
    stream.write(b"x" * 3_000_000 + b"\n")
    os.write(fd, b"after\n")
    stream.close()
    os.close(fd)
    assert (tmp_path / "out").read_bytes() == b"before\n" + b"x" * 3_000_000 + b"\nafter\n"


@pytest.mark.parametrize("path", ["/dev/null", "/dev/full"])
def test_a_device_takes_or_refuses_everything_at_once(path):
    fd = os.open(path, os.O_WRONLY)
    stream = Stream(fd, lambda: None)
    stream.write(b"x" * 3_000_000)
    assert not stream.waiting
    stream.close()
    os.close(fd)


def test_a_closed_descriptor_is_no_error():
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    stream = Stream(write, lambda: None)
    stream.write(b"hello\n")
    stream.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("place", ["pipe", "terminal"], indirect=True)
def test_a_pipe_of_another_user_does_not_block_either(place, tmp_path):
    """As after ``sudo -u``, or in a container that runs as another user."""
    script = """
        import asyncio, os, sys
        from minetorch_launch.output.terminal import Stream

        async def main():
            os.setgid(65534)
            os.setuid(65534)
            try:
                os.close(os.open("/proc/self/fd/1", os.O_WRONLY))
                sys.exit("it can be opened: this tests nothing")
            except PermissionError:
                pass
            stream = Stream(1, lambda: None)
            stream.write(b"0123456789" * 50_000)
            os.write(2, b"written\\n")
            while stream.waiting:
                await asyncio.sleep(0.01)
            stream.close()

        asyncio.run(main())
    """
    if terminal_columns(place.fd) is not None:
        os.fchmod(place.fd, 0o600)
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=place.fd, stderr=subprocess.PIPE) as process:
        killer = threading.Timer(30, process.kill)
        killer.start()
        try:
            assert process.stderr.readline() == b"written\n"
            assert place.read(500_000) == b"0123456789" * 50_000
            assert process.wait() == 0
        finally:
            killer.cancel()
            process.kill()


@pytest.mark.parametrize("place", ["terminal"], indirect=True)
def test_a_live_line_stays_below_what_is_written(place):
    clear = "\r\x1b[K"
    stream = Stream(place.fd, lambda: None)
    assert stream.is_terminal
    stream.show_live(b"[0] ", b" 50%")
    stream.show_live(b"[0] ", b" 50%")
    stream.write(b"line\n")
    stream.show_live(b"[0] ", b" 60%", 0)
    stream.show_live(b"[0] ", b"")
    stream.write(b"end\n")
    shown = f"{clear}[0]  50%{clear}line\n{clear}[0]  50%{clear}\x1b[36m[0] \x1b[0m 60%{clear}end\n"
    assert place.read(len(shown)).decode() == shown
    fcntl.ioctl(place.fd, tty.TIOCSWINSZ if hasattr(tty, "TIOCSWINSZ") else 0x5414, b"\x18\0\x14\0\0\0\0\0")
    assert terminal_columns(place.fd) == 20
    stream.show_live(b"[0] ", "é".encode() * 100)
    assert place.read(len(clear) + 4 + 30).decode() == f"{clear}[0] {'é' * 15}"  # a wrapped line cannot be cleared
    stream.close()


@pytest.mark.parametrize("place", ["terminal"], indirect=True)
def test_a_slow_terminal_misses_states_of_the_live_line_but_no_lines(place):
    async def scenario():
        stream = Stream(place.fd, lambda: None)
        stream.write(b"x" * 200_000 + b"\n")
        waiting = len(stream.waiting)
        for percent in range(1000):
            stream.show_live(b"[0] ", b"%d%%" % percent)
        assert len(stream.waiting) == waiting
        reading = asyncio.create_task(asyncio.to_thread(place.read, 200_001))
        await written(stream)
        assert (await reading).endswith(b"x\n")
        stream.show_live(b"[0] ", b"100%")
        stream.close()
        assert re.fullmatch(rb"\r\x1b\[K\[0\] 100%", place.read(11))

    asyncio.run(scenario())


@pytest.mark.parametrize("place", ["pipe"], indirect=True)
def test_a_line_of_the_launcher_does_not_continue_an_unfinished_one(place):
    stream = Stream(place.fd, lambda: None)
    stream.write_line(b"one")
    stream.write(b"(Pdb) ")
    stream.write_line(b"two")
    stream.close()
    assert os.read(place.reader, 100) == b"one\n(Pdb) \ntwo\n"
    assert not stream.is_terminal


def test_wants_colour():
    assert wants_colour({"TERM": "xterm"})
    assert wants_colour({"NO_COLOR": ""})
    assert not wants_colour({"NO_COLOR": "1", "TERM": "xterm"})
    assert not wants_colour({"TERM": "dumb"})
