"""Real processes that are asked for their stacks, whatever they are blocked in."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from itertools import pairwise

import pytest

from minetorch_launch.hangs.shared_memory import STACK_SIGNAL, SharedMemory
from minetorch_launch.hangs.stack_summary import summarize
from minetorch_launch.workers.stack_dump import dump_stacks

WORKER = """
    import ctypes, faulthandler, json, os, signal, socket, sys, threading, time
    from minetorch_launch.hangs.shared_memory import STACK_SIGNAL, SharedMemory

    link_fd, *fds = map(int, sys.argv[2:])
    link, memory = socket.socket(fileno=link_fd), SharedMemory(*fds)
    faulthandler.register(STACK_SIGNAL, file=memory.stacks, all_threads=True, chain=False)

    def answer():
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while link.recv(1):
            faulthandler.dump_traceback(memory.stacks, all_threads=True)
            link.send(b"!")

    def sleep():
        time.sleep(1000)

    def hold_the_interpreter():
        read, write = os.pipe()
        ctypes.PyDLL(None).read(read, ctypes.create_string_buffer(1), 1)

    def hold_it_beside():
        threading.Timer(0.1, hold_the_interpreter).start()
        sleep()

    def block_signals():
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        hold_the_interpreter()

    def run_another_program():
        os.execvp("sleep", ["sleep", "1000"])

    def stop():
        os.kill(os.getpid(), signal.SIGSTOP)

    def close_the_memory():
        os.close(memory.stacks)
        sleep()

    threading.Thread(target=answer, daemon=True).start()
    link.send(json.dumps({"main_thread": threading.get_ident(), "stacks_fd": memory.stacks}).encode())
    globals()[sys.argv[1]]()
"""


class Worker:
    """A worker as the launcher sees it."""

    def __init__(self, rank, script, way):
        self.rank = rank
        self.memory = SharedMemory.make()
        self._link, theirs = socket.socketpair()
        fds = (theirs.fileno(), *self.memory.fds)
        self._process = subprocess.Popen([sys.executable, script, way, *map(str, fds)], pass_fds=fds)
        theirs.close()
        self.pid = self._process.pid
        hello = json.loads(self._link.recv(1000))
        self.main_thread, self.stacks_fd = hello["main_thread"], hello["stacks_fd"]
        self._link.setblocking(False)
        self._asked = self._answered = 0

    def ask_for_stacks(self):
        self._asked += 1
        with suppress(OSError):
            self._link.send(b"?")

    @property
    def has_answered(self):
        with suppress(OSError):
            self._answered += len(self._link.recv(100))
        return self._answered == self._asked

    @property
    def has_ended(self):
        return self._process.poll() is not None

    def close(self):
        self._process.kill()
        self._process.wait()
        self._link.close()
        self.memory.close()


@pytest.fixture
def start(tmp_path):
    script = tmp_path / "train é.py"
    script.write_text(textwrap.dedent(WORKER))
    workers = []

    def start(*ways):
        workers.extend(Worker(rank, script, way) for rank, way in enumerate(ways))
        time.sleep(0.3)  # until each is where it blocks
        return workers

    yield start
    for worker in workers:
        worker.close()


async def dump_beside_a_clock(workers, seconds):
    """The snapshots, and the longest time for which the event loop did nothing else."""
    ticks = [time.monotonic()]

    async def tick():
        while True:
            await asyncio.sleep(0.01)
            ticks.append(time.monotonic())

    clock = asyncio.create_task(tick())
    snapshots = await dump_stacks(workers, "vm", seconds)
    clock.cancel()
    return snapshots, max(after - before for before, after in pairwise(ticks))


@pytest.mark.slow
def test_each_worker_tells_where_it_is_or_why_it_does_not(start):
    ways = [
        "sleep",
        "hold_the_interpreter",
        "block_signals",
        "run_another_program",
        "stop",
        "close_the_memory",
        "sleep",
    ]
    workers = start(*ways, "hold_it_beside")
    os.kill(workers[6].pid, signal.SIGKILL)
    snapshots, pause = asyncio.run(dump_beside_a_clock(workers, 2))
    assert pause < 1
    innermost = {s.rank: s.threads[0].frames[0].function for s in snapshots if s.threads}
    assert innermost == {0: "sleep", 1: "hold_the_interpreter", 7: "sleep"}
    assert {s.rank for s in snapshots if s.holds_interpreter} == {1, 7}
    blocked = snapshots[2].silence
    assert blocked.startswith("sleeping (S)")
    assert blocked.endswith(f"; it blocks signal {STACK_SIGNAL}")
    assert {s.rank: s.silence for s in snapshots if s.silence} == {
        2: blocked,
        3: "cannot be asked: its process runs sleep 1000",
        4: "stopped (T)",
        5: "has closed the memory that its stacks are written to",
        6: "has ended",
    }
    assert all(s.threads[0].is_main and s.threads[0].frames[0].source for s in snapshots if s.threads)
    text = summarize(snapshots).text()
    assert "ranks 0, 7  in the script's own code" in text
    assert "sleep: time.sleep(1000)" in text


def test_a_worker_can_be_asked_again(start):
    workers = start("sleep")
    for _ in range(3):
        (snapshot,) = asyncio.run(dump_stacks(workers, "vm"))
        assert len(snapshot.threads) == 2
        assert not snapshot.holds_interpreter
