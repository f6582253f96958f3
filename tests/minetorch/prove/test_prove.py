"""Real scripts, really killed: sound ones are exact, and each fault is found where it is, and named."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minetorch import ledger

SCRIPT = Path(__file__).parent / "scripts/train.py"

pytestmark = pytest.mark.timeout(900)  # many starts of Python, each of seconds on a machine that is busy


@pytest.mark.slow
def test_a_sound_script_on_two_ranks_is_exact(prove, tmp_path):
    kept = tmp_path / "kept"
    told = prove("sound", "--nproc", 2, "--kills", 3, "--keep", kept)
    assert "EXACT: killed 3 times, and not one bit differs." in told.out
    assert "SIGKILL to all ranks" in told.out
    assert told.out.count("SIGKILL to rank") == told.out.count("SIGTERM to rank") == 1
    assert "all 36 equal" in told.out
    (run,) = kept.glob("killed/runs/*/sound")
    book = ledger.read(run)
    assert book.check(samples=48).is_exact
    # One start of Python for the launcher's own restart and the one before it, one for each that prove made itself.
    assert len(book.starts) == 4
    assert len(list(kept.glob("killed/start-*.log"))) == 3
    log = (kept / "killed/start-1.log").read_text()
    assert "restart 1 of 1" in log
    order = ledger.read(next(kept.glob("uninterrupted/runs/*/sound"))).order()
    assert book.order() == order
    assert [sorted(order[epoch]) for epoch in (1, 2, 3)] == [[*range(48)]] * 3


@pytest.mark.slow
def test_what_is_left_to_chance_is_found(prove):
    told = prove("weights,clock,augmentation,sampler", "--kills", 1, "--json", behind=["epochs=1"], expect=1)
    expected = {
        "weights": ("tensors", "unseeded weights"),
        "clock": ("loss", "time-dependent code"),
        "augmentation": ("data", "unseeded randomness in the data"),
        "sampler": ("samples", "a sampler that is not seeded"),
    }
    for fault, (what, cause) in expected.items():
        run = told.runs[fault]
        assert (run["exact"], run["deterministic"], run["cause"]["kind"]) == (False, False, cause)
        difference = run["comparison"]["difference"]
        assert difference["what"] == what
        assert difference["step"] == (0 if fault == "weights" else 1)
        assert run["end"]["differences"]
    assert told.runs["weights"]["comparison"]["difference"]["name"] == "layers.0.weight"


@pytest.mark.slow
def test_what_a_restart_loses_is_found(prove):
    told = prove("counter,scheduler,buffer,cache", "--kills", 4, "--json", behind=["epochs=2"], expect=1)
    expected = {
        "counter": ("loss", "state outside `statable`"),
        "scheduler": ("settings", "a scheduler outside `statable`"),
        "buffer": ("tensors", "a buffer outside the checkpoint"),
        "cache": ("data", "state outside `statable`, in the data"),
    }
    for fault, (what, cause) in expected.items():
        run = told.runs[fault]
        assert (run["exact"], run["deterministic"], run["cause"]["kind"]) == (False, True, cause), fault
        difference, (mended,) = run["comparison"]["difference"], run["mended"]
        assert difference["what"] == what
        assert difference["resumed_at"] == mended["went_on_from"] > 0
        # Right where it went on, but for the buffer, which differs as soon as it is loaded.
        assert difference["step"] == mended["went_on_from"] + (fault != "buffer")
    assert told.runs["scheduler"]["comparison"]["difference"]["name"] == "lr"
    assert "CosineAnnealingLR" in told.runs["scheduler"]["cause"]["advice"]
    assert told.runs["buffer"]["comparison"]["difference"]["name"] == "calls"


@pytest.mark.slow
def test_going_on_with_another_number_of_ranks(prove):
    told = prove("sound", "--nproc", 2, "--then-nproc", 1, "--kills", 1, "--seed", 7, "--json")
    run = told.runs["sound"]
    assert (run["to_the_bit"], run["comparison"]) == (False, None)
    assert (run["mended"][0]["ranks_before"], run["mended"][0]["ranks_after"]) == (2, 1)
    assert run["samples"] == {"epochs": 3, "count": 144, "problems": [], "first_other_epoch": None}
    assert run["end"]["relative"] > 0


@pytest.mark.slow
def test_a_script_without_end_is_given_one(prove):
    told = prove("endless", "--kills", 1, expect=2)
    assert "give --steps N" in told.err
    told = prove("endless", "--steps", 12, "--kills", 1)
    assert "all 12 equal" in told.out


def test_a_script_that_fails_by_itself_is_shown(prove):
    told = prove("crash", expect=1)
    assert "ended with exit code 1" in told.err
    assert "RuntimeError: the script's own fault" in told.err
    assert "EXACT" not in told.out


@pytest.mark.slow
def test_a_script_that_takes_too_long_is_ended(prove):
    told = prove("sound", "--timeout", 3, behind=["epochs=100000"], expect=1)
    assert "--timeout" in told.err


@pytest.mark.slow
def test_nothing_is_left_after_an_interruption(tmp_path, tools, living):
    main = "from minetorch.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", main, "prove", SCRIPT, "sound", tmp_path / "runs", "epochs=100000"]
    process = subprocess.Popen(
        [*map(str, command), "--nproc", "2", "--device", "cpu"],
        env=tools | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("minetorch-prove-*/uninterrupted/runs/*/sound/proof/*r0001.jsonl")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert living(tmp_path)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130
    finally:
        process.kill()
        process.wait()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(("minetorch", "pymp", "runs"))]
    assert not living(tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no such.py"], "there is no script"),
        ([SCRIPT, "--kills", "0"], "--kills 0"),
        ([SCRIPT, "--nproc", "two"], "--nproc two"),
        ([SCRIPT, "--device", "tpu"], "--device tpu"),
        ([SCRIPT, "--timeout", "nan"], "--timeout nan"),
        ([SCRIPT, "--keep", os.curdir], "exists already"),
        ([SCRIPT, "--epochs", "4"], "unknown option --epochs"),
    ],
)
def test_a_wrong_command_is_one_line(capsys, words, said):
    from minetorch.cli import main

    assert main(["prove", *map(str, words)]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""
    assert printed.err.count("\n") == 1
