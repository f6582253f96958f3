"""Real runs to look at, some of them killed."""

import json
import logging
import shutil

import pytest
import torch
from s3fs import S3FileSystem
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import Trainer
from minetorch.checkpoint import Checkpointer, Store
from minetorch.cli import main


def mean_squared_error(trainer, data):
    return nn.functional.mse_loss(trainer.model(data[0]), data[1])


def draw_steps(trainer, loss):
    trainer.drawer.scalar(loss, "loss per step", x=trainer.progress.step)


@pytest.fixture(scope="session")
def trained_plans(tmp_path_factory):
    """`plan-a`, and `plan-b` with another learning rate and more epochs."""
    folder = tmp_path_factory.mktemp("plans")
    inputs = torch.linspace(-1, 1, 24).reshape(8, 3)
    for code, lr, epochs in (("plan-a", 0.05, 3), ("plan-b", 0.2, 4)):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        loader = DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True)), batch_size=4)
        Trainer(
            folder,
            model,
            torch.optim.Adam(model.parameters(), lr=lr),
            loader,
            mean_squared_error,
            loader,
            code=code,
            hooks={"after_train_iteration_end": draw_steps},
            drawer=None,
            max_epochs=epochs,
        ).train()
    return folder


@pytest.fixture
def plans(trained_plans, tmp_path):
    """A copy of these runs that a test may change."""
    return shutil.copytree(trained_plans, tmp_path / "plans", symlinks=True)


@pytest.fixture
def command(capsys):
    """Runs `minetorch` with these arguments; returns what it printed, or with `--json` the value."""

    def run(*words, expect=0):
        capsys.readouterr()
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        assert code == expect, printed
        if "--json" in words and code < 2 and printed.out:
            return json.loads(printed.out, parse_constant=pytest.fail)
        return printed.out + printed.err

    return run


@pytest.fixture
def aws(bucket, monkeypatch):
    """The bucket, with its credentials and server in the environment."""
    for name, value in bucket.environ.items():
        monkeypatch.setenv(name, value)
    # A client that was made before would go on with its own.
    S3FileSystem.clear_instance_cache()
    yield bucket
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def saved(tmp_path):
    """Writes a state as a checkpoint of the run `tmp_path / code`, with all that makes it a run."""

    def save(state, code="run", **facts):
        store = Store.open(tmp_path / code)
        run = Checkpointer(store.child("models"), logger=logging.getLogger("tests"), **facts.pop("options", {}))
        values = {"step": 1, "epoch": 1, "epoch_complete": True, "position": 0, "world_size": 1, "metrics": {}}
        manifest = run.save(state, **{**values, **facts})
        run.fence.release("finished")
        return store, manifest

    return save
