import asyncio
import fcntl
import json
import os
import pty
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import tty
from pathlib import Path

import pytest

from minetorch_launch.output.relay import Relay, label

CLEAR = "\r\x1b[K"
FLOOD = "import os\nwhile True: os.write(1, b'x' * 99 + b'\\n')"


class Reader:
    """The other end of a launcher's stream: a pipe, a terminal or a socket, read by a thread or by nobody."""

    def __init__(self, kind="pipe"):
        if kind == "pipe":
            self.end, self.fd = os.pipe()
        elif kind == "terminal":
            self.end, self.fd = pty.openpty()
            tty.setraw(self.fd)
        else:
            self.end, self.fd = (end.detach() for end in socket.socketpair())
        self._seen = bytearray()
        self._thread = None

    def start(self, bytes_per_second=1e9):
        def read():
            try:
                while data := os.read(self.end, 8192):
                    self._seen.extend(data)
                    time.sleep(len(data) / bytes_per_second)
            except OSError:  # the end of a terminal
                pass

        self._thread = threading.Thread(target=read)
        self._thread.start()
        return self

    def close(self):
        """Close the launcher's end; return all that was read."""
        os.close(self.fd)
        if self._thread is not None:
            self._thread.join()
        os.close(self.end)
        return bytes(self._seen)


class Job:
    """A relay, and the ends of its workers' pipes that the workers write to."""

    def __init__(self, out, err, ranks, **options):
        chosen = {"log_file": lambda rank: None, "node": None, "shows": lambda rank, stream: True}
        self.relay = Relay(out, err, **{**chosen, "prefix": True, "colour": False, **options})
        self._ends = {}
        self.begin(ranks)

    def begin(self, ranks):
        self.relay.begin(ranks)
        for rank in ranks:
            for stream in ("out", "err"):
                read, self._ends[rank, stream] = os.pipe()
                self.relay.attach(rank, stream, read)

    async def write(self, rank, stream, data):
        """Write as the worker; wait until the relay has read it."""
        end = self._ends[rank, stream]
        os.write(end, data)
        while struct.unpack("i", fcntl.ioctl(end, termios.FIONREAD, b"\0\0\0\0"))[0]:
            await asyncio.sleep(0.001)

    def start(self, rank, code):
        """Give the pipes to a process that runs ``code``."""
        process = subprocess.Popen([sys.executable, "-c", code], stdout=self._ends[rank, "out"])
        self.exit(rank)
        return process

    def exit(self, rank):
        for key in [key for key in self._ends if key[0] == rank]:
            os.close(self._ends.pop(key))

    async def end(self, seconds=5.0):
        for rank, _ in list(self._ends):
            self.exit(rank)
        await self.relay.drain()
        await self.relay.close(seconds)


@pytest.fixture
def relayed():
    """Run a scenario with a relay to two readers; return what these have seen."""

    def run(scenario, *ranks, kinds=("pipe", "pipe"), **options):
        out, err = (Reader(kind).start() for kind in kinds)

        async def main():
            job = Job(out.fd, err.fd, ranks, **options)
            try:
                await scenario(job)
            finally:
                await job.end()

        try:
            asyncio.run(asyncio.wait_for(main(), 60))
        finally:
            seen = out.close().decode(), err.close().decode()
        return seen

    before = set(Path("/proc/self/fd").iterdir())
    yield run
    assert set(Path("/proc/self/fd").iterdir()) <= before


def in_folder(folder):
    return lambda rank: folder / f"rank_{rank}.log"


def test_labels_streams_and_log_files(relayed, tmp_path):
    async def scenario(job):
        await job.write(3, "out", b"one\ntw")
        await job.write(4, "out", b"other\n")
        await job.write(3, "err", b"oops\n")
        await job.write(3, "out", b"o\nrest")
        job.exit(3)
        await job.relay.drain(0.1)
        job.relay.log(3, "only here")
        job.relay.say("the launcher")

    out, err = relayed(scenario, 3, 4, log_file=in_folder(tmp_path))
    assert out == "[3] one\n[4] other\n[3] two\n[3] rest\n"
    assert err == "[3] oops\nthe launcher\n"
    assert (tmp_path / "rank_3.log").read_text() == "one\noops\ntwo\nrest\nonly here\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank_3.log", "rank_4.log"]


@pytest.mark.parametrize(
    ("node", "ranks", "text"),
    [
        (None, (3,), b"[3] "),
        (None, (0, 1, 2, 7), b"[0-2,7] "),
        (None, (0, 2, 3), b"[0,2-3] "),
        ("gpu01", (8, 9, 10, 11), b"[gpu01:8-11] "),
    ],
)
def test_label(node, ranks, text):
    assert label(node, ranks) == text


def test_equal_lines_of_all_ranks_are_shown_once(relayed, tmp_path):
    async def scenario(job):
        for rank in (5, 4, 7, 6):
            await job.write(rank, "out", b"rank %d\nready\n" % rank)

    out, _ = relayed(scenario, 4, 5, 6, 7, node="gpu01", log_file=in_folder(tmp_path))
    assert sorted(out.splitlines()[:4]) == [f"[gpu01:{rank}] rank {rank}" for rank in range(4, 8)]
    assert out.splitlines()[4:] == ["[gpu01:4-7] ready"]
    assert (tmp_path / "rank_7.log").read_text() == "rank 7\nready\n"


def test_a_line_appears_without_the_ranks_that_do_not_print_it(relayed):
    async def scenario(job):
        await job.write(2, "out", b"hello\n")
        await job.write(0, "out", b"hello\n")
        await asyncio.sleep(0.3)
        await job.write(1, "out", b"hello\n")
        job.relay.say("the launcher")

    assert relayed(scenario, 0, 1, 2, kinds=("pipe", "pipe"))[0] == "[0,2] hello\n[1] hello\n"


def test_the_launcher_never_overtakes_and_no_line_is_left_behind(relayed):
    async def scenario(job):
        await job.write(0, "err", b"first\n")
        job.relay.say("second")
        await job.write(1, "err", b"third")
        job.exit(1)
        await job.write(0, "err", b"fourth\n")
        job.exit(0)
        await job.relay.drain()
        job.begin(range(5))
        await job.write(0, "err", b"fifth\n")

    assert relayed(scenario, 0, 1)[1] == "[0] first\nsecond\n[1] third\n[0] fourth\n[0] fifth\n"


def test_hidden_ranks_are_not_waited_for_and_their_last_lines_can_be_shown(relayed, tmp_path):
    async def scenario(job):
        await job.write(0, "out", b"step 1\n")
        await job.write(1, "out", b"".join(b"line %d\n" % number for number in range(100)))
        await job.write(1, "err", b"x" * 5000 + b"\nlast words")
        await job.write(2, "err", b"only one")
        for rank in range(4):
            job.exit(rank)
        await job.relay.drain()
        for rank in (0, 1, 1, 2, 3):
            job.relay.show_tail(rank)

    out, err = relayed(scenario, *range(4), shows=lambda rank, stream: rank == 0, log_file=in_folder(tmp_path))
    assert out == "[0] step 1\n"
    assert err.splitlines() == [
        "minetorch-launch: the last 40 lines of rank 1:",
        *(f"[1] line {number}" for number in range(62, 100)),
        "[1] " + "x" * 2000,
        "[1] last words",
        "minetorch-launch: the last line of rank 2:",
        "[2] only one",
    ]
    assert len((tmp_path / "rank_1.log").read_text().splitlines()) == 102


def test_last_lines_are_of_this_attempt(relayed):
    async def scenario(job):
        await job.write(0, "out", b"of the attempt before\n")
        job.exit(0)
        await job.relay.drain()
        job.begin([0])
        await job.write(0, "out", b"quiet\n")
        job.relay.show_tail(0)

    seen = relayed(scenario, 0, shows=lambda rank, stream: False)
    assert seen == ("", "minetorch-launch: the last line of rank 0:\n[0] quiet\n")


def test_a_stream_can_be_hidden_alone(relayed):
    async def scenario(job):
        for rank in (0, 1):
            await job.write(rank, "out", b"out\n")
            await job.write(rank, "err", b"err\n")

    assert relayed(scenario, 0, 1, shows=lambda rank, stream: stream == "err") == ("", "[0-1] err\n")


# Without labels


def test_without_labels_bytes_pass_unchanged_and_at_once(tmp_path):
    reader = Reader()
    binary = bytes(range(256)) + b"\r\n\r50%\r60%"

    async def scenario():
        job = Job(reader.fd, reader.fd, [0], prefix=False, log_file=in_folder(tmp_path))
        await job.write(0, "out", b"(Pdb) ")
        assert os.read(reader.end, 100) == b"(Pdb) "
        await job.write(0, "err", binary)
        assert os.read(reader.end, 1000) == binary
        job.relay.say("the launcher")
        assert os.read(reader.end, 100) == b"\nthe launcher\n"
        await job.end()

    asyncio.run(asyncio.wait_for(scenario(), 30))
    reader.close()
    assert b"(Pdb) " in (tmp_path / "rank_0.log").read_bytes()


def test_without_labels_there_are_no_colours_either(relayed):
    async def scenario(job):
        await job.write(0, "err", b"\r 50%\nlast\n")
        job.relay.show_tail(0)

    kinds = ("pipe", "terminal")
    _, err = relayed(scenario, 0, kinds=kinds, prefix=False, colour=True, shows=lambda rank, stream: False)
    assert err == "minetorch-launch: the last 2 lines of rank 0:\n 50%\nlast\n"


# Progress bars and terminals


def test_on_a_terminal_the_progress_bar_stays_the_last_line(relayed):
    async def scenario(job):
        await job.write(0, "err", b"\r 50%")
        await job.write(1, "err", b"line\n")
        job.exit(1)
        await asyncio.sleep(0.3)
        await job.write(0, "err", b"\r100%\n")

    _, err = relayed(scenario, 0, 1, kinds=("pipe", "terminal"))
    assert err == f"{CLEAR}[0]  50%{CLEAR}[1] line\n{CLEAR}[0]  50%{CLEAR}[0] 100%\n{CLEAR}[0]  50%{CLEAR}"


def test_the_live_line_is_that_of_the_lowest_rank_that_is_shown(relayed):
    async def scenario(job):
        await job.write(5, "err", b"\r5 at 10%")
        await job.write(3, "err", b"\r3 at 10%")
        await job.write(5, "err", b"\r5 at 20%")
        await job.write(1, "err", b"\r1 at 10%")

    _, err = relayed(scenario, 5, 3, 1, node="a", kinds=("pipe", "terminal"), shows=lambda rank, stream: rank != 1)
    assert err.startswith(f"{CLEAR}[a:5] 5 at 10%{CLEAR}[a:3] 3 at 10%{CLEAR}")
    assert "1 at" not in err


def test_elsewhere_a_progress_bar_leaves_its_final_state(relayed):
    async def scenario(job):
        for percent in range(0, 101, 10):
            await job.write(0, "err", b"\r%3d%%" % percent)
        await job.write(0, "err", b"\n")

    assert relayed(scenario, 0)[1] == "[0] 100%\n"


def test_only_labels_of_single_ranks_on_a_terminal_are_coloured(relayed, tmp_path):
    async def scenario(job):
        for rank in (0, 1):
            await job.write(rank, "err", b"both\n")
            await job.write(rank, "out", b"to a file\n")
        await job.write(1, "err", b"mine\n")

    out, err = relayed(scenario, 0, 1, kinds=("pipe", "terminal"), colour=True, log_file=in_folder(tmp_path))
    assert out == "[0-1] to a file\n"
    assert re.fullmatch(r"\[0-1\] both\n\x1b\[\d+m\[1\] \x1b\[0mmine\n", err)
    assert "\x1b" not in (tmp_path / "rank_1.log").read_text()


# Log files that cannot be written


def test_a_log_file_that_cannot_be_opened_is_named_once(relayed, tmp_path):
    (tmp_path / "rank_1.log").mkdir()

    async def scenario(job):
        for _ in range(3):
            await job.write(1, "out", b"a\n")
        await job.write(2, "out", b"b\n")

    out, err = relayed(scenario, 1, 2, log_file=in_folder(tmp_path))
    assert sorted(out.splitlines()) == ["[1] a", "[1] a", "[1] a", "[2] b"]
    assert err.count("\n") == 1
    assert f"{tmp_path / 'rank_1.log'}: Is a directory" in err
    assert (tmp_path / "rank_2.log").read_text() == "b\n"


def test_a_full_disk_costs_lines_of_the_log_only(relayed):
    async def scenario(job):
        for number in range(3):
            await job.write(0, "out", b"line %d\n" % number)
        job.relay.log(0, "not here")
        job.relay.say("the report")

    out, err = relayed(scenario, 0, log_file=lambda rank: Path("/dev/full"))
    assert out == "[0] line 0\n[0] line 1\n[0] line 2\n"
    assert re.fullmatch(r"minetorch-launch: .*/dev/full: No space left on device.*\nthe report\n", err)


def test_a_log_file_is_filled_as_far_as_it_can_be(relayed, tmp_path):
    """The kernel writes a part of the block that crosses the limit, and tells the reason at the next attempt only."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def scenario(job):
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            await job.write(0, "out", b"x" * 60_000 + b"\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    out, err = relayed(scenario, 0, log_file=in_folder(tmp_path))
    assert out == "[0] " + "x" * 60_000 + "\n"
    assert (tmp_path / "rank_0.log").stat().st_size == 50_000
    assert "File too large" in err


# Readers that are slow, stuck or gone


@pytest.mark.parametrize("kind", ["pipe", "terminal", "socket"])
def test_a_launcher_whose_output_nobody_reads_can_be_stopped(kind, tmp_path):
    reader = Reader(kind)

    async def scenario():
        job = Job(reader.fd, reader.fd, [0, 1], log_file=in_folder(tmp_path))
        workers = [job.start(rank, FLOOD) for rank in (0, 1)]
        await asyncio.sleep(1.0)
        size = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert size < 4 << 20  # the workers wait, and nothing fills the memory
        began = time.monotonic()
        for worker in workers:
            worker.kill()
            worker.wait()
        await job.relay.drain()
        job.relay.say("the report")
        await job.relay.close(0.2)
        assert time.monotonic() - began < 2
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) > size  # what was left in the pipes

    try:
        asyncio.run(asyncio.wait_for(scenario(), 30))
    finally:
        reader.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pipe", "terminal", "socket"])
@pytest.mark.parametrize("prefix", [True, False])
def test_a_slow_reader_gets_every_line(kind, prefix, tmp_path):
    reader = Reader(kind).start(bytes_per_second=1_500_000)
    code = "for i in range(40_000): print(f'line {i:05d} ' + 'y' * 88)"

    async def scenario():
        job = Job(reader.fd, reader.fd, [0], prefix=prefix, log_file=in_folder(tmp_path))
        worker = job.start(0, code)
        while worker.poll() is None:
            await asyncio.sleep(0.01)
        await job.relay.drain()
        job.relay.say("the report")
        await job.relay.close(0.5)

    try:
        asyncio.run(asyncio.wait_for(scenario(), 30))
    finally:
        seen = reader.close().decode()
    lines = [f"line {number:05d} " + "y" * 88 for number in range(40_000)]
    shown = re.sub(r"\r\x1b\[K(?:[^\r\n]*(?=\r\x1b))?", "", seen)  # without the live line
    assert shown.splitlines() == [("[0] " if prefix else "") + line for line in lines] + ["the report"]
    assert (tmp_path / "rank_0.log").read_text().splitlines() == lines


def test_a_stuck_stdout_does_not_hold_up_stderr():
    stuck, reader = Reader(), Reader().start()

    async def scenario():
        job = Job(stuck.fd, reader.fd, [0])
        process = job.start(0, FLOOD)
        job.begin([1])
        await asyncio.sleep(0.5)
        await job.write(1, "err", b"still here\n")
        process.kill()
        process.wait()
        await job.end(0.1)

    try:
        asyncio.run(asyncio.wait_for(scenario(), 30))
    finally:
        stuck.close()
        assert reader.close() == b"[1] still here\n"


@pytest.mark.parametrize("kind", ["pipe", "terminal", "socket"])
def test_a_reader_that_has_left_does_not_stop_the_job(kind, tmp_path):
    reader = Reader(kind)
    os.close(reader.end)
    reader.end = os.open("/dev/null", os.O_RDONLY)

    async def scenario():
        job = Job(reader.fd, reader.fd, [0], log_file=in_folder(tmp_path))
        for _ in range(100):
            await job.write(0, "out", b"x" * 50_000 + b"\n")
        await job.end()

    try:
        asyncio.run(asyncio.wait_for(scenario(), 30))
    finally:
        reader.close()
    assert len((tmp_path / "rank_0.log").read_text().splitlines()) == 100


def test_drain_gives_up_a_pipe_that_a_stray_process_holds(relayed):
    async def scenario(job):
        await job.write(0, "out", b"before\nunfinished")
        began = time.monotonic()
        await job.relay.drain(0.2)
        assert 0.15 < time.monotonic() - began < 1.5
        job.relay.say("the report")

    assert relayed(scenario, 0) == ("[0] before\n[0] unfinished\n", "the report\n")


@pytest.mark.slow
def test_a_flood_from_eight_ranks_is_complete_and_costs_little(launches):
    reader = Reader().start()
    blocks = ["".join(f"step {step} of {part}\n" for step in range(1000)) for part in range(20)]
    spent = []

    async def scenario():
        job = Job(reader.fd, reader.fd, range(8))
        code = (
            "import sys, time\nfor part in range(20): print(*[f'step {n} of {part}' for n in range(1000)], sep='\\n')"
        )
        workers = [job.start(rank, code) for rank in range(8)]
        began = time.thread_time()
        await job.relay.drain(60)
        spent.append(time.thread_time() - began)
        await job.relay.close(5)
        assert [worker.wait() for worker in workers] == [0] * 8

    try:
        asyncio.run(asyncio.wait_for(scenario(), 60))
    finally:
        seen = reader.close().decode()
    lines = "".join(blocks).splitlines()
    assert launches.by_rank(seen) == dict.fromkeys(range(8), lines)
    assert spent[0] < 160_000 * 4e-6  # what a worker needs to print them


# A whole launcher


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


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_a_launcher_whose_output_nobody_reads(launches, signum):  # needs the new engine
    end, pipe = os.pipe()
    try:
        script = launches.script(FLOOD)
        launcher = launches.start("--nproc", 1, "--grace", 2, script, stdout=pipe, stderr=pipe)
        os.close(pipe)
        size = -1
        while size != (size := struct.unpack("i", fcntl.ioctl(end, termios.FIONREAD, b"\0\0\0\0"))[0]) or not size:
            time.sleep(1)
        launcher.send_signal(signum)
        assert launcher.wait(timeout=10) == 128 + signum
    finally:
        os.close(end)


@pytest.mark.slow
def test_a_slow_reader_gets_every_line_of_a_whole_launch(launches):  # needs the new engine
    script = launches.script("for i in range(20_000): print(f'line {i:05d} ' + 'y' * 88)")
    reader = Reader().start(bytes_per_second=400_000)
    launcher = launches.start("--nproc", 1, "--prefix", "always", "--log-dir", "logs", script, stdout=reader.fd)
    assert launcher.wait(timeout=60) == 0
    lines = [f"line {number:05d} " + "y" * 88 for number in range(20_000)]
    assert launches.by_rank(reader.close().decode()) == {0: lines}
    assert (launches.folder / "logs/rank_0.log").read_text().splitlines()[-20_000:] == lines


@pytest.mark.slow
def test_the_output_of_a_single_worker_is_its_own(launches):  # needs the new engine
    script = launches.script(
        """
        import json, sys
        sys.stdout.write(json.dumps({"loss": 0.5}))
        sys.stdout.buffer.write(b"\\xff\\r\\n")
        """
    )
    done = launches.run("--nproc", 1, script, text=False)
    assert done.stdout == json.dumps({"loss": 0.5}).encode() + b"\xff\r\n"
