"""Trains small models with strategy="exact": from scratch, on from where another world stopped, and to stop midway.

Arguments: folder, size of the world whose runs to go on with (or -), iteration of epoch 2 to end others after (or -1).
Each rank writes what it ended with.
"""

import hashlib
import json
import os
import random
import sys
from contextlib import suppress
from pathlib import Path

import numpy
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from minetorch import Exact, Trainer

OUT, BEFORE, STOP = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
RANK, WORLD = int(os.environ["RANK"]), os.environ["WORLD_SIZE"]


class Stream(IterableDataset):
    def __init__(self, inputs, targets):
        self.rows = list(zip(inputs, targets, strict=True))

    def __iter__(self):
        return iter(self.rows)


class Augmented(Dataset):
    """Draws from each of the three generators that augmentation may take."""

    def __len__(self):
        return len(INPUTS)

    def __getitem__(self, index):
        noise = 0.1 * (random.random() + numpy.random.rand() + torch.rand(6))
        return INPUTS[index] + noise, TARGETS[index]


class UnevenBatches:
    """Batches of 9, 3, 9, 3, … samples: fewer than there are shards in every other one."""

    def __init__(self, length):
        self.length = length

    def __iter__(self):
        order = torch.randperm(self.length).tolist()
        while order:
            for size in (9, 3):
                if order:
                    yield [order.pop() for _ in range(min(size, len(order)))]

    def __len__(self):
        return -(-self.length // 12) * 2


def mlp():
    return nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Dropout(0.3), nn.Linear(40, 1))


def wide_mlp():
    """More than a megabyte, so that ranks exchange segments."""
    return nn.Sequential(nn.Linear(6, 200), nn.Tanh(), nn.Linear(200, 300), nn.GELU(), nn.Linear(300, 1))


def cnn():
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)),
        nn.Conv1d(1, 8, 3),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Dropout1d(0.2),
        nn.Flatten(),
        nn.Linear(32, 1),
    )


torch.manual_seed(1)
INPUTS = torch.randn(45, 6)
TARGETS = (INPUTS**2).sum(dim=1, keepdim=True)
DATA = TensorDataset(INPUTS, TARGETS)
# 45 samples in batches of 20: the last has fewer than there are shards.
LOADER = {"batch_size": 20, "shuffle": True}


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, nesterov=True)


CASES = {
    "mlp": (
        mlp,
        adam,
        DataLoader(Augmented(), **LOADER, num_workers=1),
        {"clip_grad_norm": 0.5, "accumulated_iter": 2},
    ),
    "cnn": (cnn, sgd, DataLoader(Augmented(), **LOADER), {"clip_grad_norm": 1.0}),
    "stream": (wide_mlp, adam, DataLoader(Stream(INPUTS, TARGETS), batch_size=20), {}),
    "batches": (mlp, sgd, DataLoader(DATA, batch_sampler=UnevenBatches(45)), {"strategy": Exact(virtual_shards=5)}),
    "bf16": (
        wide_mlp,
        sgd,
        DataLoader(DATA, 12, shuffle=True, drop_last=True),
        {"amp": "bf16", "strategy": Exact(virtual_shards=7)},
    ),
}


def loss_func(trainer, data):
    noise = 0.1 * torch.rand(())  # as some losses have it; also in validation
    return nn.functional.mse_loss(trainer.model(data[0]), data[1]) * (1 + noise)


class InterruptedHereError(Exception):
    pass


class Watch:
    """Draws each iteration's loss and some noise, which a hook may need, and ends the run where it is told to."""

    def __init__(self, stop):
        self.stop = stop
        self.seen = 0

    def before_train_iteration_start(self, trainer):
        trainer.drawer.scalar(float(torch.rand(())), "noise", x=trainer.progress.samples)

    def after_train_iteration_end(self, trainer, index, data, loss):
        self.seen += sum(len(inputs) for inputs, _ in data)
        noise = float(torch.rand(()))
        trainer.drawer.scalars({"loss": float(loss), "noise": noise}, "iterations", x=trainer.progress.samples)
        if (trainer.current_epoch, index) == (2, self.stop):
            trainer.persist(wait=True)
            raise InterruptedHereError

    @torch.no_grad()
    def after_epoch_end(self, trainer):
        close = sum(int(((trainer.model(x) - y).abs() < 2).sum()) for x, y in trainer.val_dataloader)
        trainer.drawer.scalar(trainer.reduce(close, "sum"), "close")


def make(case, runs, watch):
    build, optimizer, loader, changes = CASES[case]
    torch.manual_seed(RANK)  # each rank's own: the run takes rank 0's
    model = build()
    return Trainer(
        OUT / "runs" / runs,
        model,
        optimizer(model),
        loader,
        loss_func,
        DataLoader(DATA, batch_size=12),
        code=case,
        plugins=[watch],
        max_epochs=2,
        persist_stride=None,
        drawer=None,
        split_batches=True,
        **{"strategy": "exact", **changes},
    )


def digest(state):
    """Of every bit in nested dicts and lists of tensors and numbers."""
    if isinstance(state, torch.Tensor):
        return hashlib.sha256(state.detach().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
    if isinstance(state, dict):
        return {str(key): digest(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [digest(value) for value in state]
    return repr(state)


def train(case, runs, *, stop=-1):
    watch = Watch(stop)
    trainer = make(case, runs, watch)
    steps = [trainer.progress.step]
    with suppress(InterruptedHereError):
        trainer.train()
    return {
        "samples": watch.seen,
        "steps": [*steps, trainer.progress.step],
        "weights": digest(trainer.unwrapped_model.state_dict()),
        "optimizer": digest(trainer.optimizer.state_dict()),
        "figures": digest([trainer.metrics, trainer.lowest_train_loss, trainer.lowest_val_loss]),
        # Each rank's part of the losses is by ranks; together they are the `loss_sum`.
        "progress": digest(trainer.progress.state_dict() | {"loss_sums": None}),
        "curves": digest(list(trainer.drawer.curves.points())),
    }


results = {}
for case, (*_, changes) in CASES.items():
    # Amid an accumulation there would be gradients to lose.
    stop = STOP if "accumulated_iter" not in changes else 1
    results[case] = {"whole": train(case, f"whole-{WORLD}")}
    if STOP >= 0:
        results[case]["begun"] = train(case, f"begun-{WORLD}", stop=stop)
    if BEFORE != "-":
        results[case]["gone on"] = train(case, f"begun-{BEFORE}")
(OUT / f"results_{WORLD}_{RANK}.json").write_text(json.dumps(results))
