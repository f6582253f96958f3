"""A run that was stopped and gone on with ends as one that was never stopped: in every bit, on as many workers.

190 combinations of data, learning and stops, on one to four workers, and real ends of real processes. On
another number of workers: to the sample.
"""

import functools
import importlib.util
import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.groups import group_of_one
from minetorch import Checkpoints
from minetorch.strategies.buckets import settle_buckets

WORLDS = Path(__file__).parent / "worlds"


def load(script):
    spec = importlib.util.spec_from_file_location(f"world_{script}", WORLDS / f"{script}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXACT = load("exact")
CASES = [(world, case) for world in (1, 2, 3, 4) for case in EXACT.cases(world)]


@pytest.fixture(scope="module")
def found(tmp_path_factory, launch):
    """What differed in each case on each rank, of a world that is started once for all its cases."""

    @functools.cache
    def find(world, *few):
        out = tmp_path_factory.mktemp(f"exact_{world}")
        options = ["--threads", "1", "--hang-timeout", "600"]
        try:
            launch(world, "exact.py", out, *few, options=options, timeout=500)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            return error
        return [json.loads((out / f"found_{rank}.json").read_text()) for rank in range(world)]

    return find


def test_a_few_stopped_runs_end_in_the_same_bits(found):
    """Two processes, because the buckets of DistributedDataParallel and the data's shares are what may differ."""
    assert found(2, "few") == [{str(case): {} for case in EXACT.FEW}] * 2


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("world", "case"), CASES, ids=lambda value: str(value))
def test_a_stopped_run_ends_in_the_same_bits(found, world, case):
    differences = found(world)
    assert isinstance(differences, list), differences  # else the world failed, and once is enough
    assert [rank[str(case)] for rank in differences] == [{}] * world


ENDS = {
    # How it ends, how often the launcher starts again by itself, its first exit code, and what is said.
    "rank": (1, 0, "rank 1 failed: killed by SIGKILL"),
    "all": (0, 137, "SIGKILL"),
    "TERM": (0, 75, "SIGTERM on rank 1: stopped early"),
    "USR2": (0, 75, "SIGUSR2 on rank 1: stopped early"),
    "USR2 to the launcher": (0, 75, "SIGUSR2 on rank"),
    "launcher": (0, -9, ""),
    "storage": (0, 1, "StorageError"),
}


def start(folder, how, restarts):
    """Start three workers, and say to them what the launcher's process is."""
    launcher = [sys.executable, "-m", "minetorch_launch", "--nproc", "3", "--device", "cpu", "--threads", "1"]
    command = [*launcher, "--max-restarts", str(restarts), str(WORLDS / "killed.py"), str(folder), how]
    return ["sh", "-c", 'echo $$ > "$0"; exec "$@"', str(folder / "launcher"), *command]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, run_command):
    """The run that nobody ends."""
    folder = tmp_path_factory.mktemp("whole")
    run_command(*start(folder, "", 0))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("how", ENDS)
def test_whatever_ends_the_processes(how, whole, tmp_path, tools):
    restarts, code, said = ENDS[how]
    ended = run(start(tmp_path, how, restarts), tools)
    assert (ended.returncode, said in ended.stdout) == (code, True), ended.stdout
    if how == "storage":
        (tmp_path / "runs/default/models").unlink()
        (tmp_path / "moved").rename(tmp_path / "runs/default/models")
    if code:
        wait_until_gone(tmp_path)
        again = run(start(tmp_path, "", 0), tools)
        assert again.returncode == 0, again.stdout
    assert "Resumed from" in (tmp_path / "runs/default/log.txt").read_text()
    assert json.loads((tmp_path / "end.json").read_text()) == json.loads((whole / "end.json").read_text())
    assert epochs_in_log(tmp_path) == epochs_in_log(whole)


def run(command, environment):
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
        env=environment,
    )


def wait_until_gone(folder):
    """A killed launcher's workers end by themselves, in a moment."""
    deadline = time.monotonic() + 60
    name = str(folder).encode()
    while any(name in read(process / "cmdline") for process in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def epochs_in_log(folder):
    """The lines of the epochs, without how long each took; of an epoch that was begun again, its last."""
    lines = re.findall(r"^INFO \S+ \S+ (Epoch (\d)/3: .*) \(.*$", (folder / "runs/default/log.txt").read_text(), re.M)
    return {epoch: line for line, epoch in lines}


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(1, 3), (4, 2), (3, 4)])
def test_on_another_number_of_workers_to_the_sample(launch, tmp_path, first, then):
    """The rest of the epoch is seen once, in the same global order, and augmented alike: the sums say so."""
    for kind in ("shuffled", "stream"):
        launch(first, "regrouped.py", tmp_path / kind, kind, 3)
        launch(then, "regrouped.py", tmp_path / kind, kind, -1)
        launch(then, "regrouped.py", tmp_path / f"{kind} whole", kind, -1)
    for kind in ("shuffled", "stream"):
        stopped, whole = (json.loads((tmp_path / name / "seen.json").read_text()) for name in (kind, f"{kind} whole"))
        assert Counter(map(tuple, stopped["samples"])) == Counter(map(tuple, whole["samples"]))
        assert stopped["order"] == whole["order"]
        assert stopped["count"] == whole["count"]


@pytest.mark.slow
def test_with_split_batches_the_curve_is_the_same_within_rounding(launch, tmp_path):
    curves = []
    for number, worlds in enumerate([(1, 3), (2,), (4, 1)]):
        folder = tmp_path / str(number)
        for turn, world in enumerate(worlds):
            launch(world, "regrouped.py", folder, "split", -1 if turn == len(worlds) - 1 else 3)
        curves.append(json.loads((folder / "seen.json").read_text())["curve"])
    xs = [[x for x, _ in curve] for curve in curves]
    assert xs[0] == xs[1] == xs[2]
    for curve in curves[1:]:
        assert [y for _, y in curve] == pytest.approx([y for _, y in curves[0]], rel=1e-4)


def test_a_checkpoint_asked_for_amid_an_accumulation_is_taken_at_its_end(trained, make_trainer, tmp_path):
    def ask(trainer, index):
        if (trainer.current_epoch, index) == (2, 2):
            asked.append(trainer.persist("amid"))

    asked, how = [], {"accumulated_iter": 2, "checkpoints": Checkpoints(keep_last=1)}
    whole = trained(alchemistic_directory=tmp_path / "whole", **how)
    trained(hooks={"after_train_iteration_end": ask}, **how)
    assert asked == [None]
    trainer = make_trainer(resume="amid", **how)
    assert (trainer.progress.epoch, trainer.progress.iteration) == (2, 4)
    trainer.train()
    weights = trainer.unwrapped_model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.weights.items())


def test_settling_ddps_buckets_leaves_no_trace():
    """Gradients stay as they are and no hook of the user's is called, for a sparse gradient either."""
    called = []
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model[1].bias.requires_grad_(False)
    model[1].weight.register_hook(lambda gradient: called.append("hook"))
    handle = model[1].weight.register_post_accumulate_grad_hook(lambda parameter: called.append("later hook"))
    model[3].weight.grad = torch.full((1, 3), 7.0)
    with group_of_one():
        ddp = nn.parallel.DistributedDataParallel(model)
        settle_buckets(ddp)
        assert called == []
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert {name: gradient.tolist() for name, gradient in gradients.items()} == {"3.weight": [[7.0] * 3]}
        for steps in (1, 2):
            ddp(torch.tensor([1, 2, 4])).sum().backward()
            assert called == ["hook", "later hook"] * steps
            assert not ddp.reducer._rebuild_buckets(), "they were not settled"
        handle.remove()
