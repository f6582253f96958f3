import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from minetorch_launch import procfs


@pytest.fixture
def start():
    processes = []

    def start(code):
        """Run Python code that prints a line once it is ready."""
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process.pid, process.stdout.readline().split()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_signals_of_a_process(start):
    pid, _ = start(
        """
        import os, signal, time
        signal.signal(signal.SIGUSR1, print)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        os.kill(os.getpid(), signal.SIGUSR2)
        print("ready", flush=True)
        time.sleep(100)
        """
    )
    status = procfs.read_status(pid)
    assert procfs.handles_signal(pid, signal.SIGUSR1)
    assert not any(procfs.handles_signal(pid, signum) for signum in (signal.SIGHUP, signal.SIGUSR2, signal.SIGTERM))
    assert status.blocks(signal.SIGUSR2)
    assert status.has_pending(signal.SIGUSR2)
    assert not status.has_pending(signal.SIGUSR1)
    assert procfs.threads(pid) == [pid]
    assert procfs.command_line(pid).startswith(sys.executable)


def test_a_zombie_is_not_alive_and_a_process_that_is_gone_has_no_status():
    process = subprocess.Popen(["true"])
    end = time.monotonic() + 10
    while procfs.read_status(process.pid).is_alive:
        assert time.monotonic() < end
    assert procfs.read_status(process.pid).state == "Z"
    process.wait()
    assert procfs.read_status(process.pid) is None
    assert not procfs.handles_signal(process.pid, signal.SIGTERM)
    assert (procfs.command_line(process.pid), procfs.threads(process.pid)) == ("", [])
    assert procfs.read_status(os.getpid()).is_alive
