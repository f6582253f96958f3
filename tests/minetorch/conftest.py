"""A small real training, of which each test changes what it is about."""

import json
import logging
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from s3fs import S3FileSystem
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from minetorch import Trainer
from minetorch.checkpoint import Checkpointer, Store
from minetorch.cli import main
from tests.fakes.s3_server import serving


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

    def launch(nproc, script, *arguments, options=(), timeout=150):
        path = Path(__file__).parent / "worlds" / script
        launcher = [sys.executable, "-m", "minetorch_launch", "--nproc", nproc, "--device", "cpu", *options]
        return run_command(*launcher, path, *arguments, timeout=timeout)

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


@pytest.fixture
def commit_old():
    """Commits a run's newest checkpoint once more, as an older Minetorch has saved it; `changes` are of its state."""

    def commit(run, **changes):
        checkpointer = Checkpointer(Store.open(run / "models"), logger=logging.getLogger("test"))
        state = checkpointer.open(True).state
        for name in ("optimizer_class", "optimizer_groups"):
            state.pop(name)
        newest = checkpointer.manifests[-1]
        facts = ("step", "epoch", "epoch_complete", "position", "world_size", "metrics")
        checkpointer.save(state | changes, **{name: getattr(newest, name) for name in facts})
        checkpointer.fence.release("")

    return commit


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """An S3 server over HTTP that checks signatures, with the key and secret of one user who may do everything."""
    with serving(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3_server):
    """A new bucket: its `name` and `url`, `options` for fsspec, the `environ` for a process, and a boto3 `client`."""
    options = {"key": s3_server.key, "secret": s3_server.secret, "endpoint_url": s3_server.url}
    client = s3_server.client()
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    yield SimpleNamespace(name=name, url=f"s3://{name}", options=options, environ=s3_server.environ, client=client)
    client.close()


@pytest.fixture
def command(capsys):
    """Runs `minetorch` with these arguments; returns what it printed, or with `--json` the value.

    `expect` is the exit code; None: it is refused, or fails.
    """

    def run(*words, expect=0):
        capsys.readouterr()
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        assert code == expect or (expect is None and code in (1, 2)), printed
        if code == 2:
            assert printed.out == ""
            assert printed.err.count("\n") == 1, printed.err
        if "--json" in words and code < 2 and printed.out and expect is not None:
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
