"""The examples and the original project's own use of the Trainer, as commands."""

import functools
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import minetorch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
WAYS = {
    "python": [sys.executable],
    "launch 2": [sys.executable, "-m", "minetorch_launch", "--nproc", "2"],
    "launch 4": [sys.executable, "-m", "minetorch_launch", "--nproc", "4"],
    "torchrun 2": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"],
}


@pytest.fixture(scope="module")
def losses(tmp_path_factory, run_command, tools):
    """The logged figures of two epochs of the digits example, started in one of the ways; each is run once."""

    @functools.cache
    def run(way):
        folder = tmp_path_factory.mktemp("digits")
        command = [*WAYS[way], ROOT / "examples/digits.py", "--epochs", "2"]
        run_command(*command, cwd=folder, env=tools | {"MINETORCH_DEVICE": "cpu"})
        log = (folder / "alchemistic_directory/digits/log.txt").read_text()
        figures = re.findall(r"Epoch \d/2: train_loss (\S+), val_loss (\S+), accuracy (\S+)", log)
        return [[float(figure) for figure in epoch] for epoch in figures]

    return run


@pytest.mark.parametrize("way", list(WAYS)[1:])
def test_the_losses_are_the_same_on_any_number_of_workers(losses, way):
    assert len(losses("python")) == 2
    for alone, together in zip(losses("python"), losses(way), strict=True):
        # The accuracy is of 360 images: at most one that lies on the edge falls to the other side.
        assert together[:2] == pytest.approx(alone[:2], rel=2e-3)
        assert together[2] == pytest.approx(alone[2], abs=1.5 / 360)


@pytest.fixture
def example(tmp_path, run_command, tools):
    """Runs an example in one way, and returns what its run logged."""

    def run(way, name, *arguments, code):
        command = [*WAYS[way], ROOT / "examples" / name, *arguments]
        run_command(*command, cwd=tmp_path, env=tools | {"MINETORCH_DEVICE": "cpu"})
        return (tmp_path / "alchemistic_directory" / code / "log.txt").read_text()

    return run


def test_two_plans_of_mnist(example, tmp_path):
    for code, loss in [("plan-a", "cross-entropy"), ("plan-b", "squared-error")]:
        log = example(
            "python", "mnist.py", "--data", "digits", "--epochs", "1", "--code", code, "--loss", loss, code=code
        )
        assert re.search(r"Epoch 1/1: train_loss \S+, val_loss \S+, accuracy", log)
        assert (tmp_path / "alchemistic_directory" / code / "graph/accuracy.png").exists()


def test_the_language_model_learns_and_writes_on(example):
    short = ["charlm.py", "--letters", "40000", "--length", "32"]
    first = example("python", *short, "--epochs", "1", code="charlm")
    log = example("launch 2", *short, "--epochs", "2", code="charlm")
    assert log.startswith(first)
    bits = [float(figure) for figure in re.findall(r"(\S+) bits a letter: The ", log)]
    assert len(bits) == 2
    assert bits[1] < bits[0] < 7


def test_the_fine_tuning_changes_the_head_alone(example, tmp_path):
    log = example("launch 2", "finetune.py", "--epochs", "4", code="finetune/new-head")
    accuracy = [float(figure) for figure in re.findall(r"accuracy (\S+)", log)]
    assert accuracy[-1] > 0.6
    base, tuned = (
        minetorch.load(tmp_path / "alchemistic_directory/finetune" / code, name)["state_dict"]
        for code, name in [("base", "best"), ("new-head", "latest")]
    )
    for name, tensor in base.items():
        assert torch.equal(tensor, tuned[name]) == name.startswith("features."), name


def test_the_originals_use_of_the_trainer(tmp_path, tools):
    """Unlimited epochs, TensorBoard, a hook that uses the script's own model; ended by Ctrl-C, then resumed."""
    command = [sys.executable, ROOT / "tests/minetorch/worlds/original.py"]

    def train_until(line):
        process = subprocess.Popen(
            command, cwd=tmp_path, env=tools, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            for output in process.stderr:
                if line in output:
                    break
            else:
                pytest.fail(f"no line with {line!r}")
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
            process.stderr.close()

    train_until("Epoch 2: ")
    train_until("Epoch 4: ")
    log = (tmp_path / "alchemistic_directory/default/log.txt").read_text()
    assert "training from scratch" in log
    assert re.search(r"Resumed from .*: epoch [1-3],", log)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(tmp_path / "alchemistic_directory/default")).Reload()
    for tag in ("loss/train", "loss/val", "accuracy"):
        steps = [event.step for event in accumulator.Scalars(tag)]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) >= 3
