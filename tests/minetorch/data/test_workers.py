"""A loader's workers outlast signals to all processes, and nothing else: no end of their parent, no shutdown."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from minetorch.data import share_out
from minetorch.distributed.world import World

SCRIPT = Path(__file__).parents[1] / "worlds/outlasting.py"


def living(session):
    """Processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal():
                state, _, _, own = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(own) == session and state not in "ZX":
                    found.append(int(entry.name))
    return found


@pytest.fixture
def outlast():
    """Runs the script; returns its exit code, its output, and the seconds until all of its processes were gone."""
    started = []

    def run(end, limit):
        with subprocess.Popen(
            [sys.executable, SCRIPT, end],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            started.append(process.pid)
            output = process.communicate(timeout=120)[0]
        deadline = time.monotonic() + limit
        while living(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        return process.returncode, output, living(process.pid)

    yield run
    for session in started:
        for pid in living(session):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_signals_to_the_group_end_no_worker_and_the_parents_end_ends_all(outlast):
    assert outlast("well", 10) == (0, "", [])


@pytest.mark.slow
def test_a_worker_that_hangs_in_c_does_not_hold_up_the_end(outlast):
    assert outlast("stuck", 10) == (0, "", [])


def test_no_worker_outlives_a_killed_parent(outlast):
    """Not even one that hangs in C."""
    assert outlast("killed", 10) == (-signal.SIGKILL, "", [])


class Asks(Dataset):
    """What a worker knows, by what it is asked."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 0:
            return TOLD.get("worker", -1)
        if index == 1:
            child = subprocess.Popen(["sleep", "1000"])
            child.terminate()
            try:
                return child.wait(20)
            finally:
                child.kill()
        return int(signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN)


TOLD = {}


def tell(worker):
    TOLD["worker"] = 7 + worker
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def answers():
    loader = share_out(
        DataLoader(Asks(), num_workers=1, worker_init_fn=tell, persistent_workers=True), World(), training=False
    )
    return torch.cat([batch.data for batch in loader.epoch(1).batches]).tolist(), loader


def test_the_users_worker_init_fn_has_the_last_word_and_programs_obey():
    assert answers()[0] == [7, -signal.SIGTERM, 1]


KEPT = []


def keep_a_loader():
    KEPT.append(answers()[1])


def test_a_forked_process_that_reads_too_ends_like_any():
    answers()
    process = multiprocessing.get_context("fork").Process(target=keep_a_loader)
    process.start()
    process.join(60)
    code = process.exitcode
    process.kill()
    assert code == 0
