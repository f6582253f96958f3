"""The lines that sum a run up, at its start and at its end."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from minetorch.options.settings import Settings
from minetorch.training.summary import Batches, ending, starting


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(100, 20)


def test_the_start():
    line = starting(Net(), Settings(), Batches(1800, 64), ["cpu"], "runs/a")
    assert line == "Training Net (2,020 parameters) on cpu: 1,800 batches of 64 per epoch, float32. Directory: runs/a"


@pytest.mark.parametrize(
    ("batches", "text"),
    [
        (Batches(1, 4096), ": 1 batch of 4,096 per epoch, "),
        (Batches(None, 8), ": batches of 8 per epoch, "),
        (Batches(7, None), ": 7 batches per epoch, "),
        (Batches(None, None), ": batches per epoch, "),
    ],
)
def test_what_is_not_known_is_left_out(batches, text):
    assert text in starting(Net(), Settings(), batches, ["cpu"], "runs/a")


def test_the_devices_are_counted_by_kind():
    line = starting(Net(), Settings(), Batches(1, 1), ["NVIDIA H100", "NVIDIA A100", "NVIDIA H100"], "runs/a")
    assert " on 2 x NVIDIA H100, NVIDIA A100: " in line


@pytest.mark.parametrize(
    ("options", "dtype", "text"),
    [
        ({"amp": "bf16"}, torch.float32, "bf16 mixed precision"),
        ({}, torch.bfloat16, "bfloat16"),
        ({"accumulated_iter": 4}, torch.float64, "4 batches per step, float64"),
    ],
)
def test_the_precision_and_the_accumulation(options, dtype, text):
    line = starting(Net().to(dtype), Settings(**options), Batches(1, 1), ["cpu"], "runs/a")
    assert f" per epoch, {text}. " in line


def test_a_compiled_model_has_the_name_of_the_users_class():
    assert starting(torch.compile(Net(), backend="eager"), Settings(), Batches(1, 1), ["cpu"], "").startswith(
        "Training Net (2,020 "
    )


def test_the_end():
    best = SimpleNamespace(monitor="accuracy", metrics={"accuracy": 0.98765, "train_loss": 0.1}, epoch=12)
    assert ending(best, 3725.0, "s3://bucket/a") == (
        "Best: accuracy 0.9877 (epoch 12). Time: 1:02:05. Checkpoints, graphs and log: s3://bucket/a"
    )


def test_the_end_of_a_run_without_a_best_epoch():
    assert ending(None, 4.25, "runs/a") == "Time: 4.2 s. Checkpoints, graphs and log: runs/a"
