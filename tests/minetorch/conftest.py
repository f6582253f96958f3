"""A small real training, of which each test changes what it is about."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
import torch
from s3fs import S3FileSystem
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from minetorch import Trainer
from minetorch.cli import main


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


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """An S3 server over HTTP that checks signatures, with the key and secret of one user who may do everything."""
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        # So that a test of uploads in parts needs no large ones.
        environ = {**os.environ, "S3_UPLOAD_PART_MIN_SIZE": "1024"}
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environ
        )
    try:
        url = s3_url(server, log)
        anyone = {"endpoint_url": url, "region_name": "us-east-1"}
        iam = boto3.client("iam", aws_access_key_id="admin", aws_secret_access_key="admin", **anyone)
        iam.create_user(UserName="tester")
        key = iam.create_access_key(UserName="tester")["AccessKey"]
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
        iam.put_user_policy(UserName="tester", PolicyName="all", PolicyDocument=json.dumps(policy))
        # From here on no request passes without a good signature.
        kind = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", kind), timeout=10).close()
        yield SimpleNamespace(url=url, key=key["AccessKeyId"], secret=key["SecretAccessKey"])
    finally:
        server.terminate()
        server.wait(timeout=20)


def s3_url(server, log):
    """Where the server listens, as soon as it says so."""
    deadline = time.monotonic() + 60
    while True:
        found = re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read_text())
        if found:
            return found[1]
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.fixture
def bucket(s3_server):
    """A new bucket: its `name` and `url`, `options` for fsspec, the `environ` for a process, and a boto3 `client`."""
    options = {"key": s3_server.key, "secret": s3_server.secret, "endpoint_url": s3_server.url}
    environ = {
        "AWS_ACCESS_KEY_ID": s3_server.key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret,
        "AWS_ENDPOINT_URL": s3_server.url,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=s3_server.url,
        region_name="us-east-1",
        aws_access_key_id=s3_server.key,
        aws_secret_access_key=s3_server.secret,
    )
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    yield SimpleNamespace(name=name, url=f"s3://{name}", options=options, environ=environ, client=client)
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
