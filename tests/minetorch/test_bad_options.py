"""Every argument of the Trainer with values that cannot work: an error of ours that names it, and nothing written."""

import dataclasses
import inspect
import math
import re
from datetime import timedelta

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import DDP, CheckpointNotFoundError, Checkpoints, ConfigurationError, Exact, Trainer
from minetorch.errors import StorageError
from minetorch.options.settings import Settings


class Shy:
    """An object that cannot be shown."""

    def __repr__(self):
        raise RuntimeError("not me")


class HalfStateful:
    def state_dict(self):
        return {}


def frozen():
    return nn.Linear(1, 1).requires_grad_(False)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def loader(length, **options):
    return DataLoader(TensorDataset(torch.zeros(length, 1), torch.zeros(length, 1)), batch_size=4, **options)


HUGE = 10**5000
NOT_COUNTS = [0, -1, 1.5, "1", True, math.nan, [1], HUGE, torch.ones(2)]
COUNTS = [None, *NOT_COUNTS]
POSITIVE = [0, -1, "1", True, math.nan, math.inf, 10**400, HUGE, [1]]
CHOICES = [None, 1, "x", [], Shy()]
FLAGS = [None, 0, 1, "yes", torch.ones(2)]
PATHS = [None, 3, "", " ", "a\0b", "\ud800", b"runs", ["runs"], "nosuch://x", "~nosuchuser/x", Shy()]

BAD = {
    "alchemistic_directory": PATHS,
    "model": [None, 3, nn.Linear, nn.ReLU(), frozen(), nn.Linear(1, 1, device="meta")],
    "optimizer": [None, 3, torch.optim.SGD, sgd(nn.Linear(1, 1))],
    "train_dataloader": [None, [1, 2], loader(4).dataset, loader(0), loader(3, drop_last=True)],
    "loss_func": [None, 3, lambda: 0, lambda trainer: 0, lambda a, b, c: 0, nn.MSELoss(), "loss", Shy()],
    "val_dataloader": [3, [1, 2], loader(4).dataset, loader(0)],
    "code": [None, 3, "", "/", "..", "a/../b", "a//b", "/a", "a\\b", "a\nb", "\ud800", "é" * 128, Shy()],
    "resume": [None, -1, 1.5, "", " ", "a\0b", HUGE, [], {}, torch.ones(2), Shy()],
    "eval_stride": COUNTS,
    "persist_stride": NOT_COUNTS,
    "drawer": [3, "matplotlob", ["matplotlib", "matplotlib"], object(), dict, Shy()],
    "hooks": [
        3,
        [],
        False,
        "after_init",
        [print],
        {"after_epoch": print},
        {"after_init": 3},
        {3: print},
        torch.ones(2),
    ],
    "plugins": [None, 3, "NaNGuard", {"a": 1}, [None], [object()], [3], object(), torch.ones(2)],
    "statable": [3, [], False, {"a": 3}, {"a": HalfStateful()}, {3: nn.Linear(1, 1)}, {"model": nn.ReLU()}, "x"],
    "max_epochs": NOT_COUNTS,
    "max_time": [*POSITIVE, timedelta(0), timedelta(days=-1)],
    "logging_format": [3, "", "%(nosuch)s", "%(message)", "%d", "{message}", torch.ones(2)],
    "trival": FLAGS,
    "in_notebook": FLAGS,
    "accumulated_iter": COUNTS,
    "amp": [None, True, 1, "fp8", "bf-16", "fp16"],
    "clip_grad_norm": POSITIVE,
    "seed": [None, 1.5, "1", True, math.nan, 2**64, -HUGE],
    "split_batches": FLAGS,
    "checkpoints": [None, 3, {"keep_last": 3}, Checkpoints],
    "strategy": [None, True, "fsdp", "exact", Exact, nn.Linear(1, 1), Shy()],
    "storage_options": [3, "key=secret-x", ["secret-x"], {3: "secret-x"}],
    "if_running": CHOICES,
    "ledger": FLAGS,
}
"""`strategy="exact"` because it needs `split_batches=True`, `amp="fp16"` because this is no GPU."""

BAD_OPTIONS = {
    Checkpoints: {
        "every_steps": NOT_COUNTS,
        "every_minutes": POSITIVE,
        "when_busy": CHOICES,
        "keep_last": NOT_COUNTS,
        "keep_best": NOT_COUNTS,
        "keep_every": NOT_COUNTS,
        "keep_every_steps": NOT_COUNTS,
        "monitor": [None, 3, "", " ", "a\nb", "\ud800", ["val_loss"]],
        "mode": CHOICES,
        "optimizer_options": CHOICES,
    },
    DDP: {"find_unused_parameters": FLAGS},
    Exact: {"virtual_shards": COUNTS},
}


def cases(bad):
    return [
        pytest.param(name, value, id=f"{name}-{number}")
        for name, values in bad.items()
        for number, value in enumerate(values)
    ]


def test_each_argument_has_a_bad_value_here():
    assert {*inspect.signature(Trainer).parameters} - {"unknown"} == BAD.keys()
    assert {field.name for field in dataclasses.fields(Settings)} <= BAD.keys()
    for kind, bad in BAD_OPTIONS.items():
        assert {field.name for field in dataclasses.fields(kind)} == bad.keys()


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [pytest.param(kind, *case.values, id=case.id) for kind, bad in BAD_OPTIONS.items() for case in cases(bad)],
)
def test_a_bad_option_is_an_error_that_names_it(kind, name, value):
    with pytest.raises(ConfigurationError) as refused:
        kind(**{name: value})
    message = str(refused.value)
    assert message.startswith(f"{kind.__name__}({name}=")
    assert f" is not allowed: {name} must be " in message
    assert len(message) < 1200


@pytest.mark.parametrize(("name", "value"), cases(BAD))
def test_a_bad_value_is_an_error_that_names_it_and_nothing_is_written(parts, tmp_path, monkeypatch, name, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINETORCH_DEVICE", "cpu")
    arguments = parts()
    if name == "model" and isinstance(value, nn.Module) and any(True for _ in value.parameters()):
        arguments["optimizer"] = sgd(value)
    with pytest.raises(ConfigurationError) as refused:
        Trainer(**arguments | {name: value})
    message = str(refused.value)
    assert re.search(name.rstrip("s").replace("_", "[ _]"), message, re.IGNORECASE) or name == "alchemistic_directory"
    assert len(message) < 1200
    assert "secret-x" not in message
    assert list(tmp_path.iterdir()) == []


def test_what_the_storage_has_no_name_for_is_its_own_words(parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="File name too long"):
        Trainer(**parts(alchemistic_directory="x" * 300))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resume", [1, "best", "epoch_3", "mine", "runs/mine.pth.tar", "/nowhere/mine.pth.tar"])
@pytest.mark.parametrize("if_running", ["refuse", "replace"])
def test_a_checkpoint_that_is_not_there_is_asked_for_and_nothing_is_written(
    parts, tmp_path, monkeypatch, resume, if_running
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="there is no checkpoint"):
        Trainer(**parts(resume=resume, if_running=if_running))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("meant", "given"),
    [
        ("after_epoch_end", "after_epoch_ended"),
        ("after_train_iteration_end", "after_train_iteration_ended"),
        ("before_quit", "before_quitting"),
        ("after_checkpoint_persisted", "after_checkpoint_persist"),
    ],
)
def test_a_hook_point_that_is_misspelt_is_told_the_right_one(parts, meant, given):
    with pytest.raises(ConfigurationError, match=f"There is no hook point '{given}'. Did you mean '{meant}'?"):
        Trainer(**parts(hooks={given: print}))
    plugin = type("Plugin", (), {given: lambda self, trainer: None})()
    with pytest.raises(ConfigurationError, match=f"Did you mean '{meant}'?"):
        Trainer(**parts(plugins=[plugin]))
