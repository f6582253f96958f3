"""Whatever is killed, and whenever: soon nothing of the launch is left, no process (so no port), no shared memory."""

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

# Each rank has DataLoader workers, a semaphore and a block of shared memory, whose names it writes down; ignores
# what can be ignored; and ends up in C code that holds the interpreter.
CLINGS = """
    import ctypes, multiprocessing, os, pathlib, signal, sys, time
    from multiprocessing import shared_memory

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    semaphore = multiprocessing.get_context("spawn").Semaphore()
    block = shared_memory.SharedMemory(create=True, size=4096)
    names = pathlib.Path(sys.argv[1], f"{os.getpid()}.names")
    names.write_text(f"sem.{semaphore._semlock.name.lstrip('/')} {block.name.lstrip('/')}")

    import torch, torch.distributed as dist
    from torch.utils.data import DataLoader

    class Numbers:
        def __len__(self):
            return 10**9

        def __getitem__(self, index):
            time.sleep(0.01)
            return torch.zeros(1000)

    dist.init_process_group()
    batches = iter(DataLoader(Numbers(), num_workers=2))
    for _ in range(5):
        next(batches)
        dist.all_reduce(torch.ones(1))
    print("clinging", flush=True)
    ctypes.PyDLL(None).sleep(1000)
"""

VICTIMS = ("launcher", "group", "fork server", "worker")


def _processes(launches, parent):
    return [pid for pid in launches.processes() if _parent(pid) == parent]


def _parent(pid):
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def _kill(launches, process, victim):
    """Kill -9 the victim; whether there was one by now."""
    if victim == "group":
        os.killpg(process.pid, signal.SIGKILL)
        return True
    if victim == "launcher":
        process.kill()
        return True
    commands = launches.processes()
    servers = [
        pid
        for pid, command in commands.items()
        if "processes.fork_server" in command and "processes.reaper" in commands.get(_parent(pid), "")
    ]
    victims = (
        servers if victim == "fork server" else [pid for server in servers for pid in _processes(launches, server)]
    )
    with suppress(ProcessLookupError):
        for pid in victims[:1]:
            os.kill(pid, signal.SIGKILL)
    return bool(victims)


def _ended(process, within):
    """What it has said, once it has ended."""
    try:
        return "".join(process.communicate(timeout=within))
    except subprocess.TimeoutExpired:
        return ""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_launch_killed_at_a_random_moment_leaves_nothing(launches, seed):
    chance = random.Random(seed)
    victim = VICTIMS[seed % len(VICTIMS)]
    names = launches.folder / "names"
    names.mkdir()
    script = launches.script(CLINGS)
    process = launches.start("--nproc", 2, "--grace", 1, script, names)
    time.sleep(chance.uniform(0.0, 4.0))  # any moment will do: this only spreads them
    while not _kill(launches, process, victim):
        assert process.poll() is None
        time.sleep(0.01)
    if victim in ("fork server", "worker"):
        # A fork server that dies before it has any worker is started anew.
        while not (said := _ended(process, within=2)):
            _kill(launches, process, victim)
        assert "SIGKILL" in said or "the fork server ended" in said, said
    assert launches.gone_within(5), launches.processes()
    for file in names.iterdir():
        for name in file.read_text().split():
            assert not Path("/dev/shm", name).exists(), (victim, name)
