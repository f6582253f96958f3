"""Notices reach the workers that take them, and work that was saved early is no failure."""

import os
import re
import signal
import sys

import pytest

# Takes a warning once it is told to begin, and says what came.
TAKES = """
    import os, pathlib, signal, sys, time

    code, begin = int(sys.argv[1]), pathlib.Path(sys.argv[2])
    told = []
    print("waiting", flush=True)
    while not begin.exists():
        time.sleep(0.01)
    signal.signal(signal.SIGUSR2, lambda signum, frame: told.append(signum))
    print("ready", flush=True)
    while not told:
        time.sleep(0.01)
    time.sleep(0.3)
    print("told", len(told), flush=True)
    sys.exit(code)
"""


def _lines(process, launches, text, ranks=2):
    """Read on until all ranks have said ``text``."""
    seen, heard = "", set()
    while len(heard) < ranks:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        seen += line
        heard = {rank for rank, lines in launches.by_rank(seen).items() if text in lines}


@pytest.mark.parametrize("code", [75, pytest.param(0, marks=pytest.mark.slow)])
def test_a_preemption_warning_reaches_each_worker_once_and_their_exit_code_is_handed_on(launches, code):
    begin = launches.folder / "begin"
    begin.touch()
    process = launches.start("--nproc", 2, "--max-restarts", 0, launches.script(TAKES), code, begin)
    _lines(process, launches, "ready")
    process.send_signal(signal.SIGUSR2)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert launches.by_rank(out) == {0: ["told 1"], 1: ["told 1"]}
    assert "passed it on to ranks 0, 1" in err
    early = "minetorch-launch: stopped early with all work saved; run the same command again to continue"
    assert (err.splitlines()[-1] == early) == (code == 75)


@pytest.mark.slow
def test_a_worker_without_a_handler_is_warned_once_it_has_one(launches):
    begin = launches.folder / "begin"
    process = launches.start("--nproc", 2, launches.script(TAKES), 75, begin)
    _lines(process, launches, "waiting")
    process.send_signal(signal.SIGUSR2)
    assert "no worker here has a handler for it so far" in process.stderr.readline()
    begin.touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert launches.by_rank(out) == {0: ["ready", "told 1"], 1: ["ready", "told 1"]}


@pytest.mark.slow
def test_a_warning_that_comes_before_the_workers_reaches_them(launches):
    launches.script("import time; print('importing', flush=True); time.sleep(2)", "slow_import.py")
    process = launches.start("--nproc", 2, "--preload", "slow_import", launches.script(TAKES), 75, "script.py")
    assert "importing" in process.stdout.readline()
    process.send_signal(signal.SIGUSR2)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert launches.by_rank(out) == {rank: ["waiting", "ready", "told 1"] for rank in range(2)}


@pytest.mark.slow
def test_workers_that_replace_others_get_an_earlier_warning_too(launches):
    script = launches.script(
        """
        import os, signal, sys, time

        def take(signum, frame):
            if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
                raise ValueError("while it saves")
            sys.exit(75)

        signal.signal(signal.SIGUSR2, take)
        print("ready", flush=True)
        time.sleep(100)
        """
    )
    process = launches.start("--nproc", 2, "--max-restarts", 1, script)
    _lines(process, launches, "ready")
    process.send_signal(signal.SIGUSR2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err


@pytest.mark.slow
def test_a_script_without_a_handler_runs_on(launches):
    script = launches.script("print('here', flush=True); input_ = open(__import__('sys').argv[1]); input_.read()")
    fifo = launches.folder / "fifo"
    os.mkfifo(fifo)
    process = launches.start("--prefix", "always", script, fifo)
    _lines(process, launches, "here", ranks=1)
    process.send_signal(signal.SIGUSR2)
    assert "no worker here has a handler for it so far" in process.stderr.readline()
    fifo.write_text("go on")
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.slow
def test_another_signal_can_be_the_warning(launches):
    begin = launches.folder / "begin"
    begin.touch()
    script = launches.script(TAKES.replace("SIGUSR2", "SIGTERM"))
    process = launches.start("--nproc", 2, "--preempt-signals", "TERM,USR1", script, 75, begin)
    _lines(process, launches, "ready")
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert launches.by_rank(out) == {0: ["told 1"], 1: ["told 1"]}


@pytest.mark.slow
def test_a_worker_that_dies_of_a_warning_was_stopped_and_has_not_failed(launches):
    script = launches.script("import time\nprint('here', flush=True)\ntime.sleep(1000)")
    process = launches.start("--nproc", 2, "--max-restarts", 5, "--preempt-signals", "TERM", script)
    _lines(process, launches, "here")
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.splitlines()[-1] == "minetorch-launch: stopped by SIGTERM"


@pytest.mark.slow
def test_who_stopped_early_waits_for_the_others_as_long_as_grace_allows(launches):
    script = launches.script(
        """
        import os, sys, time
        if os.environ["RANK"] == "1":
            time.sleep(1000)
        sys.exit(75)
        """
    )
    done = launches.run("--nproc", 2, "--grace", 1, script)
    assert done.returncode == 75, done.stderr
    assert not launches.processes()


def test_a_preemption_is_no_failure_and_is_not_restarted(launches):
    script = launches.script("import sys; print('once', flush=True); sys.exit(75)")
    done = launches.run("--nproc", 2, "--max-restarts", 3, script)
    assert (done.returncode, launches.by_rank(done.stdout)) == (75, {0: ["once"], 1: ["once"]})


@pytest.mark.slow
def test_a_stop_that_finds_all_work_saved_says_so(launches):
    begin = launches.folder / "begin"
    begin.touch()
    process = launches.start("--nproc", 2, launches.script(TAKES.replace("SIGUSR2", "SIGTERM")), 75, begin)
    _lines(process, launches, "ready")
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 75


# Beats as a Trainer does, having made so many steps since it began at step 7, and saves when it is told.
BEATS = """
    import os, signal, struct, sys, time

    signal.signal(signal.SIGUSR2, lambda signum, frame: sys.exit(75))
    steps = int(sys.argv[1])
    beat = struct.pack("=8q", 5, time.monotonic_ns(), 7 + steps, 1, 7, 0, 1, 7)
    os.pwrite(int(os.environ["MINETORCH_HEARTBEAT_FD"]), beat, 16)
    time.sleep(100)
"""

# One launcher of a job whose workers get their warning 2 s from now.
IN_A_JOB = """
    import sys, time

    from minetorch_launch import LaunchError, LaunchOptions, Script
    from minetorch_launch.cli import run_here
    from minetorch_launch.slurm.environment import JobTimes, SlurmJob

    job = SlurmJob(id="1", kind="task", hosts=("here",), times=JobTimes(end=int(time.time()) + 60, limit=600))
    try:
        run_here(Script(sys.argv[1], (sys.argv[2],)), LaunchOptions(nproc=1, preempt_before=58), job)
    except LaunchError as error:
        sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "said"), [(0, "NoProgressError: the job ran out of time"), (1, "StoppedEarlyError")])
def test_a_job_whose_time_is_always_up_too_early_is_not_run_again(launches, steps, said):
    driver = launches.script(IN_A_JOB, "driver.py")
    done = launches.run(driver, launches.script(BEATS), steps, command=(sys.executable,))
    assert re.search(r"minetorch-launch: the job ends in \d+ s: ", done.stderr)
    assert said in done.stderr.splitlines()[-1]
