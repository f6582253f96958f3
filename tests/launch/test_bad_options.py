"""Every option of `minetorch-launch` with values that cannot work: one line that says so, and nothing done."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minetorch_launch.arguments import OPTIONS
from minetorch_launch.cli import main
from minetorch_launch.errors import UsageError
from minetorch_launch.options import LaunchOptions

LONG = "x" * 5000
NOT_WHOLE = ["", "x", "1.5", "nan", "²", "9" * 5000]
NOT_SECONDS = ["", "x", "1 s", "-1", "nan", "-inf"]
NOT_FINITE = ["inf", "1e7", "1e400"]
FLAGS = ["1", "yes"]

BAD = {
    "--nproc": [*NOT_WHOLE, "0", "-1", "10001"],
    "--device": ["", "gpu", "cuda:0", "CPU"],
    "--max-restarts": [*NOT_WHOLE, "-1"],
    "--restart-policy": ["", "never"],
    "--log-dir": ["", " ", LONG, "script.py", "script.py/logs", "/proc/no/such"],
    "--threads": [*NOT_WHOLE, "0", "10001"],
    "--start-method": ["", "Spawn"],
    "--preload": [
        "",
        ".",
        "no_such_module",
        "email.",
        "email.no_such",
        "email./etc",
        "email.**",
        f"email.{LONG}",
        LONG,
    ],
    "--grace": [*NOT_SECONDS, *NOT_FINITE],
    "--preempt-signals": ["KILL", "STOP", "0", "99", "9" * 5000, "nosuch", "USR1,nosuch"],
    "--hang-timeout": [*NOT_SECONDS, "0"],
    "--show": ["", "1", "none"],
    "--prefix": ["", "no"],
    "--nodes": ["", "x", "0", "-1", "2:", ":2", "3:2", "1:2:3", "2", "9" * 5000],
    "--rdzv-endpoint": ["", " ", "h:", "h:65536", "h:x", "[::1", f"h:{'9' * 5000}", "h:-1", "a b"],
    "--node-rank": [*NOT_WHOLE, "-1"],
    "--rdzv-id": ["", " "],
    "--join-timeout": [*NOT_SECONDS, *NOT_FINITE, "0"],
    "--last-call-timeout": [*NOT_SECONDS, *NOT_FINITE],
    "--local-addr": ["", " "],
    "--preempt-before": [*NOT_SECONDS, *NOT_FINITE],
    "--sbatch": ["script.py/job.sh", "no/such/job.sh", ".", LONG],
    "--sbatch-options": ["--time=1:00"],
    "--no-python": FLAGS,
    "--redirects": ["4", "x", "0:4", "0:1,"],
    "--tee": ["4", "x", "-1", ":", "9" * 5000],
    "--local-ranks-filter": ["x", "0,", "-1", "²"],
    "--numa-binding": ["", "all"],
    "--virtual-local-rank": FLAGS,
    "--role": [" "],
    "--dry-run": FLAGS,
    "--version": FLAGS,
    "--help": FLAGS,
}
"""By option, what it may not be; `--nodes 2` because there is no rendezvous."""

WRONG_KIND = {
    "nproc": ["2", "auto", 1.5, True],
    "device": [None, 3, ["cpu"]],
    "max_restarts": [None, "3", True],
    "restart_policy": [None, True],
    "log_dir": ["logs", 3],
    "threads": ["2", 0.5],
    "start_method": [None, 3],
    "preload": ["torch", ["torch"], (3,), None],
    "grace": [None, "30", True],
    "preempt_signals": ["USR1", ("SIGUSR1", 3), ("USR1",), 10],
    "show": [None, 0],
    "prefix": [None, True],
    "hang_timeout": ["60", True],
    "nodes": [2, (2,), ("2", "4"), (True, True), [2, 4]],
    "rdzv_endpoint": [3, ("h", 5)],
    "node_rank": ["0", 0.5],
    "rdzv_id": [7],
    "preempt_before": ["60"],
    "join_timeout": ["600"],
    "last_call_timeout": [None, "1"],
    "local_addr": [3],
    "role": [3],
    "redirects": [3, None],
    "tee": [3, {0: 1}],
    "local_ranks_filter": [0, "0", ("0",), (), (-1,), [0]],
    "numa_binding": [True, 0],
}
UNCHECKED = {"virtual_local_rank"}


def cases(table):
    return [pytest.param(name, value, id=f"{name}={value}"[:30]) for name, values in table.items() for value in values]


def test_each_option_has_a_bad_value_here():
    assert {option.name for options in OPTIONS.values() for option in options} == BAD.keys()
    assert {field.name for field in dataclasses.fields(LaunchOptions)} - UNCHECKED == WRONG_KIND.keys()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the launcher is: a script, and nothing else."""
    (tmp_path / "script.py").write_text("raise SystemExit('the script has run')")
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("SLURM_", "PET_")):
            monkeypatch.delenv(name)
    return tmp_path


def refusal(words, folder, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert len(err) < 2000 or LONG in err
    assert [path.name for path in folder.iterdir()] == ["script.py"]
    return err


@pytest.mark.parametrize(("option", "value"), cases(BAD))
def test_a_bad_value_is_one_line_and_nothing_is_done(option, value, folder, capsys):
    err = refusal([f"{option}={value}", "script.py"], folder, capsys)
    assert err.startswith("minetorch-launch: error: ")
    assert option in err


@pytest.mark.parametrize("option", [name for name, values in BAD.items() if values != FLAGS and name != "--sbatch"])
def test_an_option_without_its_value_is_one_line(option, folder, capsys):
    assert option in refusal([option], folder, capsys)


@pytest.mark.parametrize(("name", "value"), cases(WRONG_KIND))
def test_a_value_of_the_wrong_kind_from_python(name, value):
    with pytest.raises(UsageError) as refused:
        LaunchOptions(**{name: value})
    assert f"{name.replace('_', '-')} " in str(refused.value) or name in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        [LONG],
        [""],
        ["-m", LONG],
        ["-m", ".."],
        ["-m", "email.**"],
        ["-m", "email.message."],
        ["-m", "email./etc"],
        ["-m", f"email.{LONG}"],
        ["--", "-"],
        ["--no-python", ""],
        ["--no-python", "script.py"],
        ["\ud800.py"],
        ["script.py/x.py"],
    ],
)
def test_what_is_no_script_and_no_module(words, folder, capsys):
    refusal(words, folder, capsys)


@pytest.mark.parametrize("command", ["minetorch-launch", "minetorch"])
def test_in_a_folder_that_is_gone(command, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    program = Path(sys.executable).with_name(command)
    words = ["ls", "x"] if command == "minetorch" else ["x.py"]
    shell = 'cd "$0" && rmdir "$0" && exec "$@"'
    done = subprocess.run(["sh", "-c", shell, gone, program, *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "is gone" in done.stderr or "does not exist" in done.stderr


def test_arguments_that_are_no_text_reach_the_script(launches):
    script = launches.script("import os, sys; print(os.fsencode(sys.argv[1]).hex())", os.fsdecode(b"odd \xff.py"))
    ran = launches.run("--device", "cpu", script, os.fsdecode(b"\xfe"), "\x1b")
    assert (ran.returncode, ran.stdout) == (0, "fe\n"), ran.stderr
    planned = launches.run("--dry-run", "--sbatch=job.sh", script, os.fsdecode(b"\xfe"), text=False)
    assert planned.returncode == 0, planned.stderr
    assert b"odd \xff.py" in planned.stdout
    planned = launches.run("--dry-run", script, text=False)
    assert planned.returncode == 0, planned.stderr
    assert rb"odd \udcff.py" in planned.stdout
