"""What a resumption does to the log, and what a log costs on a storage that cannot append."""

import os
import signal
import subprocess
import sys

import pytest

from minetorch.checkpoint import Store
from minetorch.log import RunLog
from minetorch.log.remote import RemoteFileHandler


class Counted:
    """A remote store that counts what is written, and can be told to fail."""

    def __init__(self, store, told=None):
        self.store = store
        self.told = told or {"bytes": 0, "writes": 0, "fail after": 10**9}
        self.is_local = False

    def child(self, name):
        return Counted(self.store.child(name), self.told)

    def write(self, name, data):
        if self.told["writes"] >= self.told["fail after"]:
            raise OSError("killed")
        self.told["writes"] += 1
        self.told["bytes"] += len(data)
        self.store.write(name, data)

    def delete(self, name):
        self.told["writes"] += 1
        if self.told["writes"] > self.told["fail after"]:
            raise OSError("killed")
        self.store.delete(name)

    def __getattr__(self, name):
        return getattr(self.store, name)


@pytest.fixture
def remote(tmp_path):
    return Counted(Store.open(f"memory://parts/{tmp_path.name}"))


def handler(store, **options):
    return RemoteFileHandler(store, rank=0, append=True, console=RunLog(store).logger.handlers[0], **options)


def whole(store):
    """All lines of a log in parts."""
    names = sorted(store.child("logs").list("log."))
    contents = [store.child("logs").read(name) for name in names] + [store.read("log.txt")]
    return [line for part in contents for line in part.decode().splitlines() if not line.startswith("(goes on")]


def test_the_cost_of_a_remote_log_grows_with_its_length_and_not_with_its_square(remote):
    log = handler(remote, part_bytes=1000)
    text = "x" * 99
    for _ in range(500):
        log.add(f"{text}\n")
        log.flush()
    assert whole(remote) == [text] * 500
    assert max(len(remote.child("logs").read(name)) for name in remote.child("logs").list()) <= 1100
    # 50,000 bytes at 500 flushes of at most 1,100 each, and the parts; it would be 12,500,000 otherwise.
    assert remote.told["bytes"] < 500 * 700
    assert remote.read("log.txt").startswith(b"(goes on from logs/log.00")
    log.close()


@pytest.mark.parametrize("writes", range(7))
def test_a_kill_between_two_writes_loses_and_doubles_no_line(remote, writes):
    log = handler(remote, part_bytes=100, flush_s=1000)
    log.add("a" * 60 + "\n")
    log.flush()
    remote.told["fail after"] = remote.told["writes"] + writes
    for letter in "bc":
        log.add(letter * 60 + "\n")
        log.flush()
    remote.told["fail after"] = 10**9
    # Whatever of b and c has reached the store, the next start sees a first and each at most once, in order.
    last = handler(remote, part_bytes=100, flush_s=1000)
    last.add("d\n")
    last.flush()
    shown = [line[0] for line in whole(remote)]
    assert shown == sorted(set(shown))
    assert shown[0] == "a"
    assert shown[-1] == "d"
    for each in (log, last):
        if each._timer is not None:
            each._timer.cancel()


def test_lines_reach_a_remote_store_without_a_flush_and_in_one_write(remote):
    log = handler(remote, flush_s=0.2)
    for number in range(50):
        log.add(f"{number}\n")
    timer = log._timer
    timer.join(20)
    assert remote.read("log.txt").count(b"\n") == 50
    assert remote.told["writes"] == 1
    log.close()


RUN = """
import os, sys, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from minetorch import Checkpoints, Trainer

def loss_func(trainer, data):
    return nn.functional.mse_loss(trainer.model(data[0]), data[1])

def speak(trainer, index):
    trainer.logger.info("rank %d step %d", trainer.rank, trainer.progress.step)
    if trainer.progress.step == int(sys.argv[1]):
        os.kill(os.getpid(), 9)

torch.manual_seed(0)
model = nn.Linear(1, 1)
inputs = torch.linspace(-1, 1, 16).unsqueeze(1)
Trainer(
    "runs", model, torch.optim.SGD(model.parameters(), lr=0.1), DataLoader(TensorDataset(inputs, inputs), batch_size=4),
    loss_func, max_epochs=3, checkpoints=Checkpoints(every_steps=2), drawer=None,
    hooks={"after_train_iteration_end": speak},
).train()
"""


@pytest.mark.slow
def test_a_resumed_run_appends_to_its_log_what_is_done_again(tmp_path):
    (tmp_path / "train.py").write_text(RUN)
    for kill_at, code in ((7, -signal.SIGKILL), (0, 0), (0, 0)):
        done = subprocess.run(
            [sys.executable, "train.py", str(kill_at)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert done.returncode == code, done.stderr
    log = (tmp_path / "runs/default/log.txt").read_text()
    steps = [int(line.rsplit(" ", 1)[1]) for line in log.splitlines() if " rank 0 step " in line]
    assert steps[:7] == [*range(1, 8)]
    assert steps[7] <= 7
    assert steps[7:] == [*range(steps[7], 13)]
    before, _, after = log.partition("Resumed from")
    assert "rank 0 step 7" in before
    assert "rank 0 step 7" in after
