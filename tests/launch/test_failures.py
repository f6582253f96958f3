"""Each way to fail: the exit code, and the one report that stands last."""

import json
import os
import pty
import re
import signal
import time

import pytest

PRINTS_THEN = """
    import ctypes, os, signal, sys, time
    if os.environ["RANK"] == "1":
        print("about to end", flush=True)
        {end}
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("end", "code", "said", "last"),
    [
        ("sys.exit(3)", 3, "called sys.exit(3)", ""),
        pytest.param("sys.exit('a message')", 1, "called sys.exit('a message')", "", marks=pytest.mark.slow),
        ("raise ValueError('two\\nlines')", 1, "ValueError: two", "ValueError: two\nlines"),
        pytest.param("raise KeyboardInterrupt", 130, "KeyboardInterrupt", "KeyboardInterrupt", marks=pytest.mark.slow),
        pytest.param("os._exit(5)", 5, "exit code 5 without an exception", "", marks=pytest.mark.slow),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "killed by SIGKILL", ""),
        pytest.param("ctypes.string_at(0)", 139, "killed by SIGSEGV", "in <module>", marks=pytest.mark.slow),
    ],
)
def test_report(launches, end, code, said, last):
    done = launches.run("--nproc", 2, launches.script(PRINTS_THEN.replace("{end}", end)))
    assert done.returncode == code
    assert done.stdout == "[1] about to end\n"
    report = done.stderr.removeprefix("[1] a message\n")
    assert report.startswith("minetorch-launch: rank 1 of 2 failed first: ")
    assert said in report.splitlines()[0]
    assert f"  exit code  {code}" in report
    assert report.rstrip().endswith(last)
    assert report.count("Traceback (most recent call last)") == ("raise" in end)
    for internal in ("minetorch_launch/", "multiprocessing", "torch/", "W1122"):
        assert internal not in report


@pytest.mark.slow
def test_a_syntax_error_shows_its_place_only(launches):
    done = launches.run(launches.script("print('never')\n1 +\n"))
    assert done.returncode == 1
    assert "SyntaxError: invalid syntax" in done.stderr.splitlines()[0]
    assert "minetorch_launch" not in done.stderr
    assert "line 2\n    1 +" in done.stderr


def test_good_ends(launches):
    script = launches.script(
        """
        import os, sys
        print("x", flush=True)
        (sys.exit, os._exit, lambda code: sys.exit(), id)[int(os.environ["RANK"])](0)
        """
    )
    done = launches.run("--nproc", 4, script)
    assert (done.returncode, done.stderr) == (0, "")
    assert launches.by_rank(done.stdout) == {rank: ["x"] for rank in range(4)}


def test_the_cause_comes_first_and_its_consequences_after(launches):
    script = launches.script(
        """
        import os, torch, torch.distributed as dist
        dist.init_process_group("gloo")
        for step in range(10**9):
            dist.all_reduce(torch.ones(100_000))
            if step == 5 and dist.get_rank() == 2:
                os.kill(os.getpid(), 9)
        """
    )
    done = launches.run("--nproc", 4, "--log-dir", "logs here", script)
    assert done.returncode == 137
    assert "rank 2 of 4 failed first: killed by SIGKILL" in done.stderr
    assert done.stderr.count("minetorch-launch: rank") == 1
    found = json.loads((launches.folder / "logs here/failure.json").read_text())
    assert (found["first"]["rank"], found["exit_code"]) == (2, 137)
    assert found["first"]["log_file"] == "logs here/rank_2.log"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("closes_s", "blamed"),
    [(1.5, "rank 0 of 2 failed first: ValueError: the disk is full"), (1000, "rank 1 of 2 failed first: Rem")],
)
def test_the_cause_is_waited_for_where_others_only_repeat_it(launches, closes_s, blamed):
    script = launches.script(
        """
        import os, sys, time
        class RemoteError(RuntimeError):
            repeats_peer_error = True
        RemoteError.__module__ = "builtins"
        if os.environ["RANK"] == "1":
            raise RemoteError("Rank 0 failed, so rank 1 stops too: ValueError: the disk is full")
        time.sleep(float(sys.argv[1]))
        raise ValueError("the disk is full")
        """
    )
    done = launches.run("--nproc", 2, "--grace", 4, script, closes_s)
    assert done.returncode == 1
    assert blamed in done.stderr
    if closes_s < 4:
        assert "then       rank 1 failed: RemoteError: Rank 0 failed" in done.stderr


@pytest.mark.slow
def test_a_scripts_own_excepthook_is_called(launches):
    script = launches.script(
        """
        import sys
        sys.excepthook = lambda kind, error, trace: print("hook:", error)
        raise ValueError("caught by a hook")
        """
    )
    done = launches.run(script)
    assert (done.returncode, done.stdout) == (1, "hook: caught by a hook\n")


@pytest.mark.slow
def test_a_script_that_closes_all_descriptors_still_shows_its_traceback(launches):
    script = launches.script("import os; os.closerange(3, 1000); raise ValueError('closed too much')")
    done = launches.run(script)
    assert done.returncode == 1
    assert done.stderr.count("ValueError: closed too much") == 1


@pytest.mark.slow
def test_a_very_long_message_is_shown_without_its_middle(launches):
    script = launches.script("raise ValueError('begin ' + 'x' * 20_000_000 + ' end')")
    done = launches.run(script)
    assert done.returncode == 1
    assert "ValueError: begin xxx" in done.stderr
    assert done.stderr.endswith("xxx end\n")
    assert len(done.stderr) < 2_000_000


@pytest.mark.slow
def test_at_exit_runs_after_an_exception_and_a_stuck_thread_does_not_hide_it(launches):
    script = launches.script(
        """
        import atexit, threading
        atexit.register(print, "at exit")
        threading.Thread(target=threading.Event().wait).start()
        raise ValueError("with a thread left")
        """
    )
    done = launches.run("--grace", 2, script)
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: with a thread left\n")
    done = launches.run(launches.script("import atexit\natexit.register(print, 'at exit')\n1/0"))
    assert (done.returncode, done.stdout) == (1, "at exit\n")


def own_lines(launches, output):
    """What the script printed, by rank; gloo of older torch says on stdout whom it is connected to."""
    by_rank = launches.by_rank(output)
    return {rank: [line for line in by_rank[rank] if "[Gloo]" not in line] for rank in sorted(by_rank)}


@pytest.mark.slow
def test_restarts_with_gloo_on_four_workers(launches):
    script = launches.script(
        """
        import os, torch, torch.distributed as dist
        attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        dist.init_process_group("gloo")
        total = torch.ones(1)
        dist.all_reduce(total)
        dist.barrier()
        if attempt < 2:
            if dist.get_rank() == attempt:
                raise ValueError(f"attempt {attempt}")
            while True:
                dist.all_reduce(total)
        print("sum", int(total))
        """
    )
    done = launches.run("--nproc", 4, "--max-restarts", 2, "--log-dir", "logs", script)
    assert done.returncode == 0, done.stderr
    assert own_lines(launches, done.stdout) == {rank: ["sum 4"] for rank in range(4)}
    words = [line for line in done.stderr.splitlines() if line.startswith("minetorch-launch")]
    assert words[::2] == [
        "minetorch-launch: rank 0 failed: ValueError: attempt 0; restart 1 of 2 of all workers",
        "minetorch-launch: rank 1 failed: ValueError: attempt 1; restart 2 of 2 of all workers",
    ]
    parts = r"noticed [\d.]+, stopped [\d.]+, rendezvous [\d.]+, started [\d.]+ s"
    for number, line in enumerate(words[1::2], start=1):
        assert re.fullmatch(rf"minetorch-launch: restart {number} of 2 took [\d.]+ s: {parts}", line)
    assert len(words) == 4
    log = (launches.folder / "logs/rank_1.log").read_text().splitlines()
    assert log[-1] == "sum 4"
    assert "ValueError: attempt 1" in log
    assert not (launches.folder / "logs/failure.json").exists()

    done = launches.run("--nproc", 2, "--max-restarts", 1, "--log-dir", "logs", script)
    assert done.returncode == 1
    assert "restarts   1 of 1 used" in done.stderr
    assert done.stderr.endswith("ValueError: attempt 1\n")
    assert json.loads((launches.folder / "logs/failure.json").read_text())["restarts"] == 1


STEPS = """
    import os, time
    begun = time.monotonic()
    import torch, torch.distributed as dist
    dist.init_process_group()
    dist.all_reduce(torch.ones(1))
    print("step", os.getpid(), time.monotonic(), time.monotonic() - begun, flush=True)
    while True:
        dist.all_reduce(torch.ones(1))
        time.sleep(0.01)
"""


@pytest.mark.slow
def test_a_restart_costs_little_beyond_what_the_script_needs(launches):
    """0.1 to 0.3 s for 2 to 8 workers on two quiet cores; the limit leaves room for busy ones."""
    process = launches.start("--nproc", 4, "--max-restarts", 1, launches.script(STEPS))

    def steps():
        lines = [process.stdout.readline().split("step ")[1].split() for _ in range(4)]
        return [(int(pid), float(at), float(own)) for pid, at, own in lines]

    victim = steps()[0][0]
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    again = steps()
    beyond = max(at for _, at, _ in again) - killed - max(own for *_, own in again)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert beyond < 2.0, err
    assert re.search(r"restart 1 of 1 took [\d.]+ s: noticed [\d.]+, stopped [\d.]+, rendezvous", err)


@pytest.mark.slow
def test_two_launches_at_once_do_not_meet(launches):
    script = launches.script(
        """
        import sys, torch, torch.distributed as dist
        dist.init_process_group("gloo")
        total = torch.full((1,), float(sys.argv[1]))
        dist.all_reduce(total)
        dist.destroy_process_group()
        print(int(total))
        """
    )
    both = [launches.start("--nproc", 2, script, number) for number in (1, 10)]
    ends = [process.communicate(timeout=100) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert own_lines(launches, ends[0][0]) == {0: ["2"], 1: ["2"]}
    assert own_lines(launches, ends[1][0]) == {0: ["20"], 1: ["20"]}


@pytest.mark.slow
def test_a_preload_that_fails_says_so(launches):
    launches.script("raise ValueError('broken on import')", "broken.py")
    done = launches.run("--preload", "broken", launches.script("print('never')"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "broken on import" in done.stderr
    assert "the fork server ended before it could start the workers" in done.stderr.splitlines()[-1]


def test_output_comes_at_once_and_keeps_its_stream(launches):
    script = launches.script(
        """
        import sys, time, pathlib
        print("first")
        while not pathlib.Path("go on").exists():
            time.sleep(0.01)
        print("to stderr", file=sys.stderr)
        """
    )
    process = launches.start(script)
    assert process.stdout.readline() == "first\n"
    (launches.folder / "go on").touch()
    assert process.communicate(timeout=60) == ("", "to stderr\n")


@pytest.mark.slow
def test_a_terminal_gives_workers_its_width(launches):
    master, slave = pty.openpty()
    script = launches.script("import os; print(os.environ['MINETORCH_CONSOLE_COLUMNS'], os.isatty(1))")
    process = launches.start("--device", "cpu", script, stderr=slave)
    out, _ = process.communicate(timeout=60)
    os.close(slave)
    os.close(master)
    assert out == "76 False\n"


@pytest.mark.slow
def test_an_error_in_a_loaders_worker_is_named_in_the_first_line(launches):
    script = launches.script("""
        from torch.utils.data import DataLoader

        class Data(list):
            def __getitem__(self, index):
                raise RuntimeError("struck\\nand more")

        for batch in DataLoader(Data([1]), num_workers=1):
            pass
    """)
    done = launches.run("--nproc", 1, script)
    assert done.returncode == 1
    assert "rank 0 of 1 failed first: RuntimeError: struck (in DataLoader worker process 0)\n" in done.stderr


def test_a_log_folder_that_vanishes_swallows_neither_the_report_nor_the_exit_code(launches):
    script = launches.script("import shutil, sys\nshutil.rmtree('logs')\nsys.exit(7)")
    done = launches.run("--log-dir", "logs", script)
    assert done.returncode == 7
    assert "rank 0 of 1 failed first: called sys.exit(7)" in done.stderr
    assert "cannot write logs/failure.json" in done.stderr
