import os
import pty
import tty

import pytest

from minetorch_launch.console import Console, Lines


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"a\nb\n"], [b"a", b"b"]),
        ([b"a", b"b\nc"], [b"ab", b"c"]),
        ([b"\n\n"], [b"", b""]),
        ([b"dos\r\n"], [b"dos"]),
        ([b"\r 0%", b"\r 50%", b"\r100%\n"], [b"100%"]),
        ([b"\r 50%\r      \rmessage\n\r 60%"], [b"message", b" 60%"]),
        ([b"\r 50%", b"\r", b"    \r"], []),
        ([b"a\r\n\nb\rc\n"], [b"a", b"", b"c"]),
    ],
)
def test_lines_are_whole_and_in_their_final_state(chunks, lines):
    cut = Lines()
    assert b"".join([*(cut.feed(chunk) for chunk in chunks), cut.finish()]) == b"".join(line + b"\n" for line in lines)


def test_an_endless_line_does_not_fill_the_memory():
    cut = Lines()
    out = b"".join(cut.feed(b"x" * 1000) for _ in range(200))
    assert len(cut.pending()) <= 1 << 16
    assert out.count(b"x") + len(cut.pending()) == 200_000
    bar = Lines()
    assert b"".join(bar.feed(b"\r%d%%" % step + b"-" * 80) for step in range(5000)) == b""
    assert bar.finish().startswith(b"4999%")


@pytest.fixture
def pipes():
    out, err = os.pipe(), os.pipe()
    yield out, err
    for fd in (*out, *err):
        os.close(fd)


def test_prefix_streams_and_log_files(pipes, tmp_path):
    (out, out_write), (err, err_write) = pipes
    console = Console(out_write, err_write, {3: tmp_path / "rank_3.log"})
    console.feed(3, "out", b"one\ntw")
    console.feed(4, "out", b"other\n")
    console.feed(3, "err", b"oops\n")
    console.feed(3, "out", b"o\nrest")
    console.finish(3, "out")
    console.log(3, "only here")
    console.say("the launcher")
    console.close()
    assert os.read(out, 1000) == b"[3] one\n[4] other\n[3] two\n[3] rest\n"
    assert os.read(err, 1000) == b"[3] oops\nthe launcher\n"
    assert (tmp_path / "rank_3.log").read_text() == "one\noops\ntwo\nrest\nonly here\n"


def test_a_reader_that_left_does_not_stop_the_job():
    out, out_write = os.pipe()
    os.close(out)
    console = Console(out_write, out_write)
    console.feed(0, "out", b"into the void\n")
    console.feed(0, "out", b"again\n")
    console.close()
    os.close(out_write)


def test_on_a_terminal_the_bar_stays_the_last_line():
    master, slave = pty.openpty()
    tty.setraw(slave)
    console = Console(slave, slave)
    console.feed(0, "err", b"\r 50%")
    console.feed(1, "out", b"line\n")
    console.feed(0, "err", b"\r100%\n")
    console.close()
    shown = b""
    while not shown.endswith(b"100%\n"):
        shown += os.read(master, 1000)  # a terminal hands over what it has so far
    os.close(slave)
    os.close(master)
    clear = b"\r\x1b[K"
    assert shown == clear + b"[0]  50%" + clear + b"[1] line\n" + clear + b"[0]  50%" + clear + b"[0] 100%\n"
