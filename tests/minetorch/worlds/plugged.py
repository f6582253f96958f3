"""Trains with every plugin at once; rank 1 is killed in the middle of epoch 2. Arguments: folder, kill or not."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from minetorch import DDP, Checkpoints, NotFiniteError, Trainer
from minetorch.plugins import (
    EMA,
    BestK,
    Classification,
    EarlyStopping,
    GradNorm,
    LRSchedule,
    Metrics,
    NaNGuard,
    NoisySamples,
    Profile,
    Throughput,
)

OUT, KILL = Path(sys.argv[1]), sys.argv[2] == "kill"
MISLABELLED = (3, 40, 77)
SEEN = []


def blobs(length):
    """Three classes apart from each other."""
    generator = torch.Generator().manual_seed(length)
    labels = torch.arange(length) % 3
    return torch.randn(length, 3, generator=generator) + 5 * nn.functional.one_hot(labels, 3), labels


def loss_func(trainer, data):
    return nn.functional.cross_entropy(trainer.model(data[0]), data[1])


def sample_losses(output, data):
    return nn.functional.cross_entropy(output, data[1], reduction="none")


def note_batch(trainer):
    SEEN.extend(trainer.batch.indices[: trainer.batch.counted])


def die_once(trainer, index):
    first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if KILL and first_attempt and (trainer.rank, trainer.current_epoch, index) == (1, 2, 5):
        wait_for_checkpoint_of(trainer.progress.step - 1)
        os.kill(os.getpid(), signal.SIGKILL)


def wait_for_checkpoint_of(step):
    deadline = time.monotonic() + 60
    while not list((OUT / "runs/default/models").glob(f"g*-s{step:09d}-*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def make(model, data, val, **changes):
    return Trainer(
        OUT / "runs",
        model,
        changes.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        DataLoader(TensorDataset(*data), batch_size=8, shuffle=True),
        loss_func,
        DataLoader(TensorDataset(*val), batch_size=16),
        **{"max_epochs": 3, "drawer": None} | changes,
    )


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def train_with_every_plugin():
    inputs, labels = blobs(112)
    for index in MISLABELLED:
        labels[index] = (labels[index] + 1) % 3
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=30)
    noisy = NoisySamples(sample_losses, top=5, from_epoch=2)
    trainer = make(
        model,
        (inputs, labels),
        blobs(33),
        optimizer=optimizer,
        checkpoints=Checkpoints(every_steps=3),
        plugins=[
            LRSchedule(schedule, per="step", draw_every=2),
            EMA(0.9),
            Classification(["red", "green", "blue"]),
            Metrics({"torch_accuracy": MulticlassAccuracy(3, average="micro"), "auroc": MulticlassAUROC(3)}),
            GradNorm(every=4),
            NaNGuard(),
            noisy,
            EarlyStopping("accuracy", mode="max", patience=9),
            BestK("accuracy", mode="max", k=2),
            BestK("train_loss"),
            Throughput(),
            Profile(wait=1, warmup=1, active=2, ranks=None),
        ],
        hooks={"after_train_iteration_end": [note_batch, die_once]},
    )
    trainer.train()
    return {
        "metrics": {name: value for name, value in trainer.metrics.items() if name != "samples_per_s"},
        "samples_per_s": trainer.metrics["samples_per_s"],
        "suspects": [suspect.sample for suspect in noisy.suspects()],
        "seen": SEEN,
    }


def a_rank_without_validation_data():
    plugins = [EMA(0.9), Classification(3), Metrics({"auroc": MulticlassAUROC(3)})]
    trainer = make(net(), blobs(32), blobs(1), code="one", plugins=plugins, max_epochs=1)
    trainer.train()
    return {"accuracy": trainer.metrics["accuracy"], "auroc": "auroc" in trainer.metrics}


def a_value_that_is_not_finite(trainer_of):
    try:
        trainer_of().train()
    except NotFiniteError as error:
        return str(error)
    return None


def bad_data():
    """One sample of all, which is one rank's."""
    inputs, labels = blobs(64)
    inputs[50, 1] = float("nan")
    return make(net(), (inputs, labels), blobs(8), code="nan", plugins=[NaNGuard()])


class Spare(nn.Module):
    """Uses a layer in training at every second step only."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        return self.first(inputs) if self.calls % 2 else self.second(inputs)


def unused_parameters():
    trainer = make(Spare(), blobs(64), blobs(8), code="unused", strategy=DDP(find_unused_parameters=True), max_epochs=1)
    trainer.train()
    return trainer.progress.step


found = train_with_every_plugin()
if not KILL:
    found["one"] = a_rank_without_validation_data()
    found["nan"] = a_value_that_is_not_finite(bad_data)
    found["unused"] = unused_parameters()
(OUT / f"rank_{os.environ['RANK']}.json").write_text(json.dumps(found))
