import os
import pty
import re
import threading
import time
import tty

import pytest

from minetorch_launch.console import Console, label, wants_colour
from minetorch_launch.console.collapse import WINDOW

CLEAR = "\r\x1b[K"


@pytest.fixture
def pipes():
    out, err = os.pipe(), os.pipe()
    yield out, err
    for fd in (*out, *err):
        os.close(fd)


@pytest.fixture
def terminal():
    master, slave = pty.openpty()
    tty.setraw(slave)

    def shown(last):
        seen = b""
        while not seen.endswith(last.encode()):
            seen += os.read(master, 1000)  # a terminal hands over what it has so far
        return seen.decode()

    yield slave, shown
    os.close(slave)
    os.close(master)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_prefix_streams_and_log_files(pipes, tmp_path):
    (out, out_write), (err, err_write) = pipes
    console = Console(out_write, err_write, log_dir=tmp_path)
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank_3.log", "rank_4.log"]


def test_a_log_file_that_cannot_be_written_costs_only_itself(pipes, tmp_path):
    (out, out_write), (_, err_write) = pipes
    (tmp_path / "rank_1.log").mkdir()
    console = Console(out_write, err_write, log_dir=tmp_path)
    console.feed(1, "out", b"a\n")
    console.feed(2, "out", b"b\n")
    console.close()
    assert os.read(out, 1000) == b"[1] a\n[2] b\n"
    assert (tmp_path / "rank_2.log").read_text() == "b\n"


@pytest.mark.parametrize(
    ("node", "ranks", "text"),
    [
        (None, (3,), b"[3] "),
        (None, (0, 1, 2, 7), b"[0-2,7] "),
        (None, (0, 2, 3), b"[0,2-3] "),
        ("gpu01", (8, 9, 10, 11), b"[gpu01:8-11] "),
    ],
)
def test_labels(node, ranks, text):
    assert label(node, ranks) == text


def test_what_all_ranks_print_is_shown_once(pipes, tmp_path):
    (out, out_write), (_, err_write) = pipes
    console = Console(out_write, err_write, log_dir=tmp_path, node="gpu01", clock=Clock())
    console.begin(range(4, 8))
    for rank in (5, 4, 7, 6):
        console.feed(rank, "out", b"rank %d\nready\n" % rank)
    console.close()
    assert os.read(out, 1000) == (
        b"[gpu01:5] rank 5\n[gpu01:4] rank 4\n[gpu01:6] rank 6\n[gpu01:7] rank 7\n[gpu01:4-7] ready\n"
    )
    assert (tmp_path / "rank_7.log").read_text() == "rank 7\nready\n"


def test_a_line_waits_a_moment_for_other_ranks(pipes):
    (out, out_write), (_, err_write) = pipes
    os.set_blocking(out, False)
    clock = Clock()
    console = Console(out_write, err_write, clock=clock)
    console.begin(range(3))
    assert console.tick() is None
    console.feed(2, "out", b"hello\n")
    clock.now += 0.05
    assert console.tick() == pytest.approx(WINDOW - 0.05)
    with pytest.raises(BlockingIOError):
        os.read(out, 1)
    console.feed(0, "out", b"hello\n")
    clock.now += WINDOW
    assert console.tick() is None
    assert os.read(out, 1000) == b"[0,2] hello\n"
    console.close()


def test_a_single_rank_never_waits(pipes):
    (out, out_write), (_, err_write) = pipes
    console = Console(out_write, err_write, clock=Clock())
    console.begin([6])
    console.feed(6, "out", b"hello\nthere\n")
    assert os.read(out, 1000) == b"[6] hello\n[6] there\n"
    console.close()


def test_the_launcher_never_overtakes_and_nothing_is_left_waiting(pipes):
    (out, out_write), (err, err_write) = pipes
    console = Console(out_write, err_write, clock=Clock())
    console.begin(range(2))
    console.feed(0, "err", b"first\n")
    console.say("second")
    console.feed(1, "err", b"third")
    console.finish(1, "err")
    console.finish(1, "out")
    console.feed(0, "err", b"fourth\n")
    console.flush()
    console.feed(0, "out", b"fifth\n")
    console.begin(range(5))
    console.feed(0, "out", b"sixth\n")
    console.close()
    assert os.read(err, 1000) == b"[0] first\nsecond\n[1] third\n[0] fourth\n"
    assert os.read(out, 1000) == b"[0] fifth\n[0] sixth\n"


def test_show_0_shows_rank_0_and_the_last_lines_of_who_fails(pipes, tmp_path):
    (out, out_write), (err, err_write) = pipes
    console = Console(out_write, err_write, show="0", log_dir=tmp_path, clock=Clock())
    console.begin(range(4))
    console.feed(0, "out", b"step 1\n")
    assert os.read(out, 1000) == b"[0] step 1\n"  # nobody else is shown, so there is nobody to wait for
    console.feed(1, "out", b"".join(b"line %d\n" % number for number in range(100)))
    console.feed(1, "err", b"x" * 5000 + b"\nlast words")
    console.finish(1, "err")
    console.show_tail(0)
    console.show_tail(1)
    console.show_tail(1)
    console.show_tail(3)
    console.close()
    head, *lines = os.read(err, 10_000).decode().splitlines()
    assert head == "minetorch-launch: the last 40 lines of rank 1:"
    assert lines == [*(f"[1] line {number}" for number in range(62, 100)), "[1] " + "x" * 2000, "[1] last words"]
    assert len((tmp_path / "rank_1.log").read_text().splitlines()) == 102


def test_show_failed_shows_nothing_but_that(pipes):
    (out, out_write), (err, err_write) = pipes
    console = Console(out_write, err_write, show="failed", clock=Clock())
    console.begin(range(2))
    console.feed(0, "out", b"of the attempt before\n")
    console.begin(range(2))
    console.feed(0, "out", b"quiet\n")
    console.show_tail(0)
    console.feed(1, "out", b"quiet\n")
    console.close()
    assert os.read(err, 1000) == b"minetorch-launch: the last line of rank 0:\n[0] quiet\n"
    os.set_blocking(out, False)
    with pytest.raises(BlockingIOError):
        os.read(out, 1)


def test_a_reader_that_left_does_not_stop_the_job():
    out, out_write = os.pipe()
    os.close(out)
    console = Console(out_write, out_write)
    console.feed(0, "out", b"into the void\n")
    console.feed(0, "out", b"again\n")
    console.close()
    os.close(out_write)


def test_on_a_terminal_the_bar_stays_the_last_line(terminal):
    slave, shown = terminal
    console = Console(slave, slave, clock=Clock())
    console.begin([0, 1])
    console.feed(0, "err", b"\r 50%")
    console.feed(1, "out", b"line\n")
    console.flush()
    console.feed(0, "err", b"\r100%\n")
    console.close()
    assert shown("100%\n") == f"{CLEAR}[0]  50%{CLEAR}[1] line\n{CLEAR}[0]  50%{CLEAR}[0] 100%\n"


def test_the_live_line_is_of_the_lowest_rank_that_is_shown(terminal):
    slave, shown = terminal
    console = Console(slave, slave, node="a", clock=Clock())
    console.feed(5, "err", b"\r5 at 10%")
    console.feed(3, "err", b"\r3 at 10%")
    console.feed(5, "err", b"\r5 at 20%")
    console.close()
    assert shown(CLEAR) == f"{CLEAR}[a:5] 5 at 10%{CLEAR}[a:3] 3 at 10%{CLEAR}"
    console = Console(slave, slave, show="0", clock=Clock())
    console.feed(1, "err", b"\r1 at 10%")
    console.feed(0, "err", b"\r0 at 10%")
    console.close()
    assert shown(CLEAR) == f"{CLEAR}[0] 0 at 10%{CLEAR}"


def test_only_a_single_ranks_label_is_coloured_and_only_on_a_terminal(terminal, pipes, tmp_path):
    slave, shown = terminal
    (out, out_write), _ = pipes
    console = Console(out_write, slave, colour=True, log_dir=tmp_path, clock=Clock())
    console.begin([0, 1])
    for rank in (0, 1):
        console.feed(rank, "err", b"both\n")
        console.feed(rank, "out", b"to a file\n")
    console.feed(1, "err", b"mine\n")
    console.feed(1, "err", b"\r 50%")
    console.flush()
    console.say("the launcher")
    console.close()
    seen = shown(CLEAR)
    one = re.findall(r"\x1b\[\d+m\[1\] \x1b\[0m", seen)
    assert len(set(one)) == 1
    assert seen == (
        f"[0-1] both\n{CLEAR}{one[0]} 50%"
        f"{CLEAR}{one[0]}mine\n{CLEAR}{one[0]} 50%{CLEAR}the launcher\n{CLEAR}{one[0]} 50%{CLEAR}"
    )
    assert os.read(out, 1000) == b"[0-1] to a file\n"
    assert "\x1b" not in (tmp_path / "rank_1.log").read_text()


def test_who_wants_colour():
    assert wants_colour({"TERM": "xterm"})
    assert wants_colour({"NO_COLOR": ""})
    assert not wants_colour({"NO_COLOR": "1", "TERM": "xterm"})
    assert not wants_colour({"TERM": "dumb"})


def test_a_flood_from_eight_ranks_is_complete_and_costs_little(launches):
    out, out_write = os.pipe()
    received = bytearray()

    def drain():
        while data := os.read(out, 1 << 20):
            received.extend(data)

    reader = threading.Thread(target=drain)
    reader.start()
    console = Console(out_write, out_write)
    console.begin(range(8))
    blocks = [[f"step {step} of {part}" for step in range(1000)] for part in range(20)]
    printed = ["\n".join([*block, ""]).encode() for block in blocks]
    started = time.thread_time()
    held = 0
    for piece in printed:
        for rank in range(8):
            console.feed(rank, "out", piece)
            held = max(held, console._collapse._lines)
        console.tick()
    took = time.thread_time() - started
    console.close()
    os.close(out_write)
    reader.join()
    os.close(out)
    lines = [line for block in blocks for line in block]
    assert launches.by_rank(received.decode()) == dict.fromkeys(range(8), lines)
    assert b"[0-7] step 999 of 0\n" in received
    assert held <= 10_000
    assert took < 160_000 * 2e-6  # what a worker needs to print them


def test_real_workers_lines_are_shown_once_and_in_order(launches):
    script = launches.script(
        """
        import os, sys
        rank = int(os.environ["RANK"])
        print("I am", rank)
        for step in range(3):
            print("step", step)
        print("a warning", file=sys.stderr)
        if rank == 2:
            print("something of my own")
        """
    )
    done = launches.run("--nproc", 3, script)
    assert (done.returncode, launches.by_rank(done.stderr)) == (0, {rank: ["a warning"] for rank in range(3)})
    steps = ["step 0", "step 1", "step 2"]
    assert launches.by_rank(done.stdout) == {
        0: ["I am 0", *steps],
        1: ["I am 1", *steps],
        2: ["I am 2", *steps, "something of my own"],
    }


@pytest.mark.slow
def test_ranks_that_print_at_one_moment_share_a_line(launches):
    script = launches.script(
        """
        import os, pathlib, time
        pathlib.Path("here " + os.environ["RANK"]).touch()
        while len(list(pathlib.Path(".").glob("here *"))) < 2:
            time.sleep(0.001)
        for _ in range(50):
            print("now")
            time.sleep(0.02)
        """
    )
    done = launches.run("--nproc", 2, script)
    assert launches.by_rank(done.stdout) == {rank: ["now"] * 50 for rank in range(2)}
    assert "[0-1] now" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("show", ["0", "failed"])
def test_show_on_the_command_line(launches, show):
    script = launches.script(
        """
        import os, pathlib, sys, time
        rank = os.environ["RANK"]
        print("out of", rank)
        print("err of", rank, file=sys.stderr)
        pathlib.Path("printed by " + rank).touch()
        while not pathlib.Path("printed by 0").exists():
            time.sleep(0.01)
        if rank == "1":
            raise ValueError("mine")
        time.sleep(60)
        """
    )
    done = launches.run("--nproc", 2, "--show", show, "--log-dir", "logs", script)
    assert done.returncode == 1
    assert done.stdout == ("[0] out of 0\n" if show == "0" else "")
    tail = ["minetorch-launch: the last 2 lines of rank 1:", "[1] out of 1", "[1] err of 1"]
    lines = done.stderr.splitlines()
    assert lines[: 4 if show == "0" else 3] == (["[0] err of 0", *tail] if show == "0" else tail)
    assert "minetorch-launch: rank 1 of 2 failed first: ValueError: mine" in lines
    assert lines[-1] == "ValueError: mine"
    assert (launches.folder / "logs/rank_0.log").read_text().splitlines()[1:3] == ["out of 0", "err of 0"]
