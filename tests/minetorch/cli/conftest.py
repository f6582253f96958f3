"""Real runs, made once, and the command on them."""

import shutil

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import Trainer


def mean_squared_error(trainer, data):
    return nn.functional.mse_loss(trainer.model(data[0]), data[1])


def name_the_second(trainer, epoch):
    if epoch == 2:
        trainer.persist("mine")


class Tied(nn.Module):
    """Two names for one weight, and a buffer that is a view of another's memory."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 3)
        self.decoder = nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight
        whole = torch.arange(6.0)
        self.register_buffer("head", whole[:2])
        self.register_buffer("tail", whole[2:])

    def forward(self, inputs):
        return self.decoder(self.encoder(inputs)).sum(dim=1, keepdim=True)


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory):
    """`runs/plan-a`, with names and three epochs, and `runs/mnist/plan-b`, with tied weights and one."""
    folder = tmp_path_factory.mktemp("trained") / "my runs"
    inputs = torch.linspace(-1, 1, 24).reshape(8, 3)
    for code, model, epochs in (("plan-a", nn.Linear(3, 1), 3), ("mnist/plan-b", Tied(), 1)):
        torch.manual_seed(0)
        loader = DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True)), batch_size=4)
        Trainer(
            folder,
            model,
            torch.optim.Adam(model.parameters(), lr=0.05),
            loader,
            mean_squared_error,
            loader,
            code=code,
            hooks={"after_epoch_end": name_the_second},
            max_epochs=epochs,
        ).train()
    return folder


@pytest.fixture
def runs(trained_runs, tmp_path):
    """A copy of these runs that a test may change."""
    return shutil.copytree(trained_runs, tmp_path / "my runs", symlinks=True)


@pytest.fixture
def memory_url(tmp_path):
    yield f"memory://{tmp_path.name}"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
