"""The processes of a launch: how many there can be, and that none outlives it."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Leaves a daemon behind: a process with a session and a parent of its own.
DAEMON = """
    import os, sys, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open("daemon", "w").write(str(os.getpid()))
            time.sleep(1000)
        os._exit(0)
    while not os.path.exists("daemon"):
        time.sleep(0.01)
    print("ready", flush=True)
    time.sleep(float(sys.argv[1]))
"""


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def reaper_of(launches, process):
    found = [pid for pid, command in launches.processes().items() if "processes.reaper" in command]
    assert len(found) == 1, launches.processes()
    return found[0]


def test_a_daemon_of_the_script_ends_with_the_launch(launches):
    done = launches.run(launches.script(DAEMON), 0)
    assert done.returncode == 0, done.stderr
    assert not is_running(int((launches.folder / "daemon").read_text()))


@pytest.mark.slow
def test_a_daemon_of_the_script_ends_with_a_killed_launcher(launches):
    process = launches.start(launches.script(DAEMON), 1000)
    assert process.stdout.readline() == "ready\n"
    process.kill()
    assert launches.gone_within(5), launches.processes()


@pytest.mark.slow
def test_a_reaper_that_is_stopped_does_not_hold_up_the_launcher(launches):
    process = launches.start(launches.script("print('here', flush=True)\nimport time\ntime.sleep(1000)"))
    assert process.stdout.readline() == "here\n"
    os.kill(reaper_of(launches, process), signal.SIGSTOP)
    process.terminate()
    assert process.wait(timeout=60) == 143


@pytest.mark.slow
def test_more_workers_than_a_descriptor_passing_pool_ever_allowed(launches):
    done = launches.run("--nproc", 130, "--device", "cpu", launches.script("import os; print(os.environ['RANK'])"))
    assert done.returncode == 0, done.stderr
    assert launches.by_rank(done.stdout).keys() == set(range(130))


@pytest.mark.slow
def test_too_few_descriptors_are_named(launches):
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))  # noqa: E731
    done = launches.run("--nproc", 16, "--device", "cpu", launches.script("pass"), preexec_fn=limit)
    assert done.returncode == 1
    assert "16 workers need some" in done.stderr
    assert "ulimit -n" in done.stderr


def test_stdin_goes_to_a_worker_that_is_alone(launches):
    script = launches.script("print(repr(input()))")
    done = subprocess.run(
        [sys.executable, "-m", "minetorch_launch", script], input="hello\n", capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "'hello'\n")


@pytest.mark.slow
def test_the_launcher_is_one_thread_without_torch(launches):
    process = launches.start("--nproc", 2, launches.script("print('here', flush=True)\nimport time\ntime.sleep(1000)"))
    assert "here" in process.stdout.readline()
    end = time.monotonic() + 5
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    while len(os.listdir(f"/proc/{process.pid}/task")) > 1 and time.monotonic() < end:  # noqa: PTH208
        time.sleep(0.05)
    assert len(os.listdir(f"/proc/{process.pid}/task")) == 1  # noqa: PTH208
    assert "libtorch" not in maps
    process.terminate()
    assert process.wait(timeout=60) == 143
