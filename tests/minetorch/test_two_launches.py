"""One run, started twice, in processes of their own."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from minetorch.checkpoint.catalogue import Catalogue
from minetorch.checkpoint.store import Store

SCRIPT = Path(__file__).parent / "worlds/slow.py"


@contextmanager
def started(place, policy="refuse", epochs=10_000):
    command = [sys.executable, SCRIPT, place, policy, str(epochs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def step(process):
    """Waits for its next step."""
    line = process.stdout.readline()
    assert line.startswith("step "), (line, process.stderr.read())
    return int(line.removeprefix("step "))


def freeze(process):
    """Stops every thread of it: one that is inside a system call finishes that first."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)


def log_of(place):
    return (place / "default/log.txt").read_text()


@pytest.fixture
def first(tmp_path):
    with started(tmp_path) as process:
        for _ in range(4):
            step(process)
        yield process


def test_the_second_is_refused_and_leaves_the_first_alone(first, tmp_path):
    with started(tmp_path) as second:
        _, errors = second.communicate(timeout=120)
    assert second.returncode == 1
    assert re.search(rf"RunInUseError: .* is being trained by another process: process {first.pid} on ", errors)
    assert step(first) > 4
    assert "RunInUseError" not in log_of(tmp_path)


@pytest.mark.slow
def test_after_a_kill_the_next_start_does_not_wait(first, tmp_path):
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=60)
    with started(tmp_path) as second:
        assert step(second) > 2
        second.kill()
        assert "looking for up to" not in second.stderr.read()


@pytest.mark.slow
def test_the_second_waits_until_the_first_ends(first, tmp_path):
    with started(tmp_path, "wait") as second:
        lines = iter(second.stderr.readline, "")
        assert any("waiting until it ends" in line for line in lines)
        first.terminate()  # it saves, and lets the run go
        last = [int(line.split()[1]) for line in first.stdout][-1]
        assert first.wait(timeout=60) == 75
        assert step(second) == last + 1


@pytest.mark.slow
def test_a_frozen_writer_comes_back_and_touches_nothing(first, tmp_path):
    freeze(first)
    with started(tmp_path, "replace") as second:
        for _ in range(6):
            step(second)
        freeze(second)
        before = (Catalogue.read(models(tmp_path)), log_of(tmp_path))
        first.send_signal(signal.SIGCONT)
        _, errors = first.communicate(timeout=120)
        assert first.returncode == 1
        assert re.search(rf"SupersededError: this run was taken over .*process {second.pid} on ", errors)
        after = (Catalogue.read(models(tmp_path)), log_of(tmp_path))
        assert after[0].manifests == before[0].manifests
        assert after[1] == before[1]
        second.send_signal(signal.SIGCONT)
        step(second)


def models(place):
    return Store.open(place).child("default", "models")
