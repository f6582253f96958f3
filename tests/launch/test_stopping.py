"""Stops reach every worker once, and whatever dies takes all that it started along."""

import os
import signal
import time

import pytest

# Rank 1 has a data loader; with "stuck" all ranks are deaf to every signal that can be caught, in C, with the GIL.
WORKS = """
    import ctypes, os, signal, subprocess, sys, time
    from torch.utils.data import DataLoader

    class Slow:
        def __len__(self):
            return 10**9
        def __getitem__(self, index):
            time.sleep(0.05)
            return index

    def handler(signum, frame):
        print("handled", signum, flush=True)
        sys.exit(0)

    if sys.argv[1] == "handles":
        signal.signal(signal.SIGTERM, handler)
    elif sys.argv[1] in ("ignores", "stuck"):
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
    try:
        # No tensors: one that is just being handed over by a descriptor has its loader's worker print a traceback.
        batches = iter(DataLoader(Slow(), num_workers=2 if os.environ["RANK"] == "1" else 0, collate_fn=list))
        next(batches)
        print("ready", os.getpid(), flush=True)
        if sys.argv[1] == "stuck":
            ctypes.PyDLL(None).sleep(1000)
        for batch in batches:
            pass
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        raise
"""


@pytest.fixture
def running(launches):
    def start(how, *options):
        process = launches.start("--nproc", 2, *options, launches.script(WORKS), how)
        pids = {}
        while len(pids) < 2:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            if "ready" in line:
                pids[int(line[1])] = int(line.split()[-1])
        return process, pids

    return start


@pytest.mark.parametrize("to_all", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["group", "launcher"])
def test_ctrl_c_stops_everything_once(launches, running, to_all):
    process, _ = running("works")
    (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert launches.by_rank(out) == {0: ["interrupted"], 1: ["interrupted"]}
    assert err.splitlines()[-1] == "minetorch-launch: stopped by SIGINT"
    assert "Traceback" not in err
    assert not launches.processes()


def test_sigterm_reaches_each_worker_once(launches, running):
    process, _ = running("handles")
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    # A loader's worker may take seconds to end on a busy machine, which the launcher says.
    said = [line for line in err.splitlines() if not line.startswith("minetorch-launch: waiting up to 30 s for rank")]
    assert said == ["minetorch-launch: stopped by SIGTERM"]
    assert launches.by_rank(out) == {0: ["handled 15"], 1: ["handled 15"]}
    assert not launches.processes()


@pytest.mark.slow
def test_a_second_ctrl_c_kills_at_once(launches, running):
    process, _ = running("ignores")
    process.send_signal(signal.SIGINT)
    assert "waiting up to 30 s for ranks 0, 1 to end" in process.stderr.readline()
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - started < 15
    assert not launches.processes()


def test_grace_bounds_a_stop(launches, running):
    process, _ = running("stuck", "--grace", "1")
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 143
    assert not launches.processes()


@pytest.mark.slow
def test_grace_bounds_a_failure_too_and_a_crash_takes_data_loader_workers_along(launches, running):
    process, pids = running("ignores", "--grace", "1")
    os.kill(pids[1], signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 137
    assert "rank 1 of 2 failed first: killed by SIGKILL" in err
    assert not launches.processes()


@pytest.mark.parametrize(
    ("kill", "start_method"),
    [
        (os.kill, "forkserver"),
        pytest.param(os.killpg, "forkserver", marks=pytest.mark.slow),
        pytest.param(os.kill, "spawn", marks=pytest.mark.slow),
    ],
)
def test_killing_the_launcher_leaves_nothing(launches, running, kill, start_method):
    process, _ = running("stuck", "--start-method", start_method)
    kill(process.pid, signal.SIGKILL)
    assert launches.gone_within(5), launches.processes()


@pytest.mark.slow
def test_killing_the_fork_server_ends_the_launch_and_says_so(launches, running):
    process, pids = running("stuck")
    with open(f"/proc/{pids[0]}/stat") as stat:
        server = int(stat.read().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 137
    assert "killed together with the fork server" in err
    assert launches.gone_within(5), launches.processes()


@pytest.mark.slow
def test_what_a_script_leaves_in_the_background_ends_with_the_launch(launches):
    script = launches.script("import subprocess; subprocess.Popen(['sleep', '1000'])")
    done = launches.run(script)
    assert done.returncode == 0
    assert launches.gone_within(5), launches.processes()


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.15, 0.5, 0.9, 1.4])
def test_a_stop_during_the_start_leaves_nothing(launches, after):
    """At any moment will do, so the sleep makes nothing flaky: it only spreads the moments."""
    process = launches.start("--nproc", 2, launches.script(WORKS), "works")
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert launches.gone_within(5), launches.processes()
