"""That all ranks stop at one step, whoever asks and whenever, and that the work is saved."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import minetorch
from minetorch.checkpoint import Store
from minetorch.checkpoint.catalogue import Catalogue
from minetorch.distributed.deadline import JobEnd
from minetorch.distributed.stop_vote import MOST_STEPS

WORLDS = Path(__file__).parent / "worlds"


@pytest.fixture(scope="module")
def stops(tmp_path_factory, launch):
    """Where each of three workers stopped in `worlds/stopping.py`, by case, and the folder of the runs."""
    out = tmp_path_factory.mktemp("stopping")
    launch(3, "stopping.py", out)
    return [json.loads((out / f"rank_{rank}.json").read_text()) for rank in range(3)], out / "runs"


def newest(runs, case):
    return max(Catalogue.read(Store.open(runs / case / "models")).manifests, key=lambda manifest: manifest.key)


@pytest.mark.slow
def test_every_rank_stops_after_the_same_step_and_it_is_saved(stops):
    ranks, runs = stops
    assert len(ranks[0]) > 25
    for case, first in ranks[0].items():
        for found in ranks[1:]:
            assert {**found[case], "seconds": 0} == {**first, "seconds": 0}, case
        manifest = newest(runs, case)
        assert [manifest.epoch, manifest.position, manifest.step] == first["at"], case


@pytest.mark.slow
def test_a_notice_stops_within_a_few_steps_of_the_moment(stops):
    ranks, _ = stops
    expected = {
        # Steps take microseconds here: the ranks vote after 16 of them, or at the end of the epoch.
        "before_epoch_start": [(2, step) for step in range(1, 7)],
        "before_train_iteration_start": [(2, step) for step in range(3, 7)],
        "after_train_iteration_end": [(1, 6)],
        "before_val_iteration_start": [(2, 6)],
        "after_val_iteration_end": [(1, 6)],
        "after_epoch_end": [(2, 6)],
    }
    for rank in range(3):
        for point, where in expected.items():
            found = ranks[0][f"notice {rank} {point}"]
            assert found["code"] == 75
            assert tuple(found["at"][:2]) in where, (rank, point, found)


@pytest.mark.slow
def test_a_notice_amid_a_long_epoch_does_not_wait_for_its_end(stops):
    found = stops[0][0]["long epoch"]
    assert found["code"] == 75
    assert 20 <= found["at"][1] <= 20 + MOST_STEPS


@pytest.mark.slow
def test_an_accumulation_is_finished_first(stops):
    assert stops[0][0]["accumulation"]["at"] in ([1, 3, 1], [1, 6, 2])


@pytest.mark.slow
def test_hooks_stop_all_from_any_rank_also_main_only_ones(stops):
    found = stops[0][0]
    for case in ("main only", "rank 2"):
        assert found[case]["code"] == 0
        # The next vote may be a few steps away.
        assert found[case]["at"] in ([1, 4, 4], [1, 5, 5], [1, 6, 6]), case
    for case in ("graceful", "graceful main only"):
        assert (found[case]["at"], found[case]["complete"]) == ([1, 6, 6], True), case
    assert found["before it trains"]["at"] == [0, 0, 0]


@pytest.mark.slow
def test_whatever_takes_long_is_cut_short_or_waited_for_and_the_notice_is_not_lost(stops):
    found = stops[0][0]
    assert found["long validation"]["code"] == 75
    assert found["long validation"]["seconds"] < 15  # 600 iterations would take 30 s
    assert found["long validation"]["complete"] is False
    assert (found["long hook"]["code"], found["long hook"]["at"][:2]) == (75, [1, 6])
    assert found["first batch"]["code"] == 75
    assert found["first batch"]["at"][:2] in [[1, step] for step in range(1, 7)]


@pytest.mark.slow
def test_deadlines(stops):
    ranks, runs = stops
    timed, ended = ranks[0]["max_time in validation"], ranks[0]["end of the job"]
    assert (timed["code"], timed["complete"]) == (0, False)
    assert timed["seconds"] < 15
    assert ended["code"] == 75
    assert ended["at"] in [[0, 0, 0], *([1, step, step] for step in range(1, 7))]
    log = (runs / "end of the job/log.txt").read_text()
    assert "The job's time is nearly up: stopped early, with all work saved up to step" in log


@pytest.mark.slow
def test_rounds_without_end_lose_no_step(stops):
    assert stops[0][0]["saves"]["at"] == [3, 100, 300]


@pytest.mark.parametrize(
    ("environ", "near_at"),
    [
        ({}, None),
        ({"SLURM_JOB_END_TIME": "2000"}, 1900.0),  # a tenth of what is left
        ({"SLURM_JOB_END_TIME": "20000", "SLURM_JOB_START_TIME": "0"}, 19880.0),
        ({"SLURM_JOB_END_TIME": "2000", "MINETORCH_ATTEMPT": "1"}, None),
        ({"SLURM_JOB_END_TIME": "soon"}, None),
    ],
)
def test_when_a_job_is_about_to_end(environ, near_at):
    now = [1000.0]
    end = JobEnd.from_environ(environ, clock=lambda: now[0])
    assert end.is_known == (near_at is not None)
    if near_at is not None:
        now[0] = near_at - 1
        assert not end.is_near
        now[0] = near_at
        assert end.is_near


def start(tools, folder, how, options=()):
    launcher = [sys.executable, "-m", "minetorch_launch", "--nproc", "2", "--device", "cpu", *options]
    return subprocess.Popen(
        [*launcher, WORLDS / "storing.py", folder, how],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**tools, "OMP_NUM_THREADS": "1"},
    )


def end(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def until(process, text):
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return
    pytest.fail("".join(seen))


@pytest.mark.slow
@pytest.mark.parametrize(("slow_s", "code"), [(1, 75), (1000, 143)])
def test_the_last_checkpoint_is_committed_within_the_grace_or_the_last_good_one_stands(tools, tmp_path, slow_s, code):
    process = start(tools, tmp_path, str(slow_s), options=["--grace", "6"])
    try:
        until(process, "slow from now on")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == code, output
        assert time.monotonic() - began < 6 + 9, output
    finally:
        end(process)
    models = tmp_path / "default/models"
    steps = [manifest.step for manifest in Catalogue.read(Store.open(models)).manifests]
    assert steps[0] == 3
    assert (len(steps) == 1) == (code == 143), steps
    if code == 75:
        assert f"all work saved up to step {steps[-1]}." in output
    # Verified, to the last byte.
    assert minetorch.load(tmp_path / "default", "latest")["progress"]["step"] == steps[-1]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raises", "exits"])
def test_a_rank_that_crashes_amid_a_round_exits_at_once_and_so_do_the_others(tools, tmp_path, how):
    process = start(tools, tmp_path, how)
    try:
        output, _ = process.communicate(timeout=100)
        assert process.returncode == (3 if how == "exits" else 1), output
    finally:
        end(process)
    crashed = float((tmp_path / "crashed").read_text())
    # By itself: rank 0 was not killed.
    assert float((tmp_path / "ended").read_text()) - crashed < 10, output
