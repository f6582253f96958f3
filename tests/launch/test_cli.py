import importlib.metadata
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import minetorch_launch
from minetorch_launch.arguments import Wants, read
from minetorch_launch.cli import main
from minetorch_launch.errors import UsageError
from minetorch_launch.options import LaunchOptions
from minetorch_launch.target import Module, Script


def test_options_end_where_the_target_begins():
    request = read(["--nproc", "2", "train.py", "--nproc", "9", "--", "-m", "x"], {})
    assert request.options == LaunchOptions(nproc=2)
    assert request.target == Script("train.py", ("--nproc", "9", "--", "-m", "x"))


@pytest.mark.parametrize("words", [["-m", "pkg.run", "-x"], ["-mpkg.run", "-x"]])
def test_module(words):
    request = read(["--device=cpu", *words], {})
    assert (request.options, request.target) == (LaunchOptions(device="cpu"), Module("pkg.run", ("-x",)))
    assert request.rest == ("-m", "pkg.run", "-x")


def test_two_dashes_let_a_script_begin_with_one():
    assert read(["--nproc=auto", "--", "-odd.py", "--"], {}).target == Script("-odd.py", ("--",))


def test_every_option():
    line = (
        "--nproc 3 --device cpu --max-restarts 2 --log-dir logs --threads 4 --start-method forkserver "
        "--preload a --preload b.c --grace 1.5 --preempt-signals usr1,TERM,12 --hang-timeout 60 --show failed "
        "--nodes 2:4 --rdzv-endpoint h:1 --node-rank 3 --rdzv-id mine --join-timeout 7 --preempt-before 30 "
        "--restart-policy always --prefix never --last-call-timeout 3 --local-addr 10.0.0.1 --dry-run --version "
        "--sbatch=job.sh --sbatch-options='-p x' train.py"
    )
    request = read(shlex.split(line), {})
    assert request.wants == Wants(dry_run=True, version=True, sbatch="job.sh", sbatch_options="-p x")
    assert request.own[:2] == ("--nproc=3", "--device=cpu")
    assert request.options == LaunchOptions(
        nproc=3,
        device="cpu",
        max_restarts=2,
        log_dir=Path("logs"),
        threads=4,
        preload=("a", "b.c"),
        grace=1.5,
        preempt_signals=("SIGUSR1", "SIGTERM", "SIGUSR2"),
        hang_timeout=60.0,
        show="failed",
        nodes=(2, 4),
        rdzv_endpoint="h:1",
        node_rank=3,
        rdzv_id="mine",
        join_timeout=7.0,
        preempt_before=30.0,
        restart_policy="always",
        prefix="never",
        last_call_timeout=3.0,
        local_addr="10.0.0.1",
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nproc", "x", "x.py"], "--nproc 'x' is not a whole number"),
        (["--nproc"], "--nproc"),
        (["--nprc", "2", "x.py"], "did you mean --nproc?"),
        (["--epochs", "3", "x.py"], "unknown option --epochs: type minetorch-launch --help"),
        (["--zork", "x.py"], "unknown option --zork"),
        (["--grace", "soon", "x.py"], "--grace 'soon' is not a number of seconds"),
        (["--preempt-signals", "KILL", "x.py"], "--preempt-signals 'SIGKILL' is unknown"),
        (["--nodes", "many", "x.py"], "--nodes 'many' is not a number of nodes"),
        (
            ["--sbatch-options", "'", "--sbatch", "--dry-run", "conftest.py"],
            '--sbatch-options "\'": No closing quotation',
        ),
        (["-m"], "-m needs a module"),
        ([], "there is nothing to run"),
        (["no/such.py"], "there is no script 'no/such.py'"),
        (["."], "'.' is a directory"),
        (["-m", "no_such_module"], "no module named 'no_such_module'"),
        (["-m", "email.no_such"], "no module named 'email.no_such'"),
        (["email.message"], "type -m email.message"),
        (["--preload", "no_such_module", "-m", "email"], "--preload no_such_module"),
        (["--log-dir", f"{__file__}/logs", __file__], "test_cli.py is a file"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(words, said, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("minetorch-launch: error: ")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_log_dir(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert main(["--log-dir", str(tmp_path / "logs"), __file__]) == 2
    assert "is not writable" in capsys.readouterr().err


def test_a_log_dir_that_cannot_be_made(capsys):
    assert main(["--log-dir", "/proc/no/such", __file__]) == 2
    assert "--log-dir /proc/no/such" in capsys.readouterr().err


def test_cuda_on_a_machine_that_hides_its_gpus(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["--device", "cuda", __file__]) == 2
    assert "--device cuda needs a GPU" in capsys.readouterr().err


def test_unreadable_usage_errors_are_also_value_errors():
    with pytest.raises(ValueError, match="nproc"):
        read(["--nproc", "no", "x.py"], {})
    with pytest.raises(UsageError):
        read(["--nproc", "no", "x.py"], {})


def test_dry_run_prints_the_plan(capsys):
    assert main(["--dry-run", "--nproc", "2", "--device", "cpu", __file__, "a b"]) == 0
    out = capsys.readouterr().out
    assert "'a b'" in out
    assert "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1" in out
    assert "MINETORCH_DEVICE=cpu" in out


def test_the_package_offers_its_whole_face():
    assert all(callable(getattr(minetorch_launch, name)) for name in minetorch_launch.__all__)
    with pytest.raises(AttributeError, match="no attribute 'zork'"):
        _ = minetorch_launch.zork


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"minetorch-launch {importlib.metadata.version('minetorch')}\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["no_such.py"], 2),
        (["--dry-run", __file__], 0),
        (["--device", "cuda", "--nproc", "1000", __file__], 2),
    ],
)
def test_answers_come_without_torch(words, code):
    """The budget of 0.3 s holds because nothing heavy is imported, which a loaded machine cannot blur."""
    probe = (
        "import sys; from minetorch_launch.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'numpy', 'minetorch'} & set(sys.modules); sys.exit(f'imports {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", probe, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_caller_may_close_the_standard_streams(launches, closed):
    launches.script("import os; print('output'); open('ran-' + os.environ['RANK'], 'w').close()")
    line = f"exec '{sys.executable}' -m minetorch_launch --nproc 2 script.py {closed}"
    done = launches.run(line, command=("sh", "-c"))
    assert done.returncode == 0
    assert "Error" not in done.stderr
    assert sorted(path.name for path in launches.folder.glob("ran-*")) == ["ran-0", "ran-1"]
