"""A small real training, of which each test changes what it is about."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from minetorch import Trainer


def mean_squared_error(trainer, data):
    inputs, targets = data
    return nn.functional.mse_loss(trainer.model(inputs), targets)


def line_data(length):
    inputs = torch.linspace(-1, 1, length).unsqueeze(1)
    return TensorDataset(inputs, 2 * inputs + 1)


@pytest.fixture(autouse=True)
def no_world(monkeypatch):
    """No variable of a surrounding launcher or job reaches a test."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_ID", "MINETORCH_CONSOLE_COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def no_bars():
    """No progress bar outlives its test: tqdm moves the next ones below those that are there."""
    yield
    for bar in list(tqdm._instances):
        bar.close()


@pytest.fixture
def parts(tmp_path):
    """Arguments of a Trainer that fits a line to 20 points in batches of 4."""

    def make(**changes):
        torch.manual_seed(0)
        model = changes.pop("model", None) or nn.Linear(1, 1)
        arguments = {
            "alchemistic_directory": tmp_path / "runs",
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            "train_dataloader": DataLoader(line_data(20), batch_size=4, shuffle=True),
            "val_dataloader": DataLoader(line_data(8), batch_size=4),
            "loss_func": mean_squared_error,
            "max_epochs": 2,
            "drawer": None,
        }
        return arguments | changes

    return make


@pytest.fixture
def make_trainer(parts):
    made = []

    def make(**changes):
        made.append(Trainer(**parts(**changes)))
        return made[-1]

    yield make
    for trainer in made:
        trainer.close()


@pytest.fixture(scope="session")
def launch(run_command):
    """Starts a script of the folder `worlds` on several workers."""

    def launch(nproc, script, *arguments, options=()):
        path = Path(__file__).parent / "worlds" / script
        launcher = [sys.executable, "-m", "minetorch_launch", "--nproc", nproc, "--device", "cpu", *options]
        return run_command(*launcher, path, *arguments)

    return launch


@pytest.fixture
def trained(make_trainer):
    """A Trainer that has trained, with its run's folder as `run` and the weights as `weights`."""

    def train(**changes):
        trainer = make_trainer(**changes)
        trainer.train()
        weights = {name: value.clone() for name, value in trainer.unwrapped_model.state_dict().items()}
        return SimpleNamespace(trainer=trainer, weights=weights, progress=trainer.progress, metrics=trainer.metrics)

    return train
