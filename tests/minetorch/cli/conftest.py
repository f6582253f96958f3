"""Real runs, made once, and the command on them."""

import json
import shutil

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from s3fs import S3FileSystem
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import Trainer
from minetorch.cli import main


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
def command(capsys):
    """Runs `minetorch` with these arguments; returns what it printed, or with `--json` the value."""

    def run(*words, expect=0):
        capsys.readouterr()
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        assert code == expect, printed
        if code == 2:
            assert printed.out == ""
            assert printed.err.count("\n") == 1, printed.err
        if "--json" in words and code < 2 and printed.out:
            return json.loads(printed.out, parse_constant=pytest.fail)
        return printed.out + printed.err

    return run


@pytest.fixture
def memory_url(tmp_path):
    yield f"memory://{tmp_path.name}"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def aws(bucket, monkeypatch):
    """The bucket, with its credentials and server in the environment."""
    for name, value in bucket.environ.items():
        monkeypatch.setenv(name, value)
    # A client that was made before would go on with its own.
    S3FileSystem.clear_instance_cache()
    yield bucket
    S3FileSystem.clear_instance_cache()
