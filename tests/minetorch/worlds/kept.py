"""Trains with a ledger, and writes down what each rank's loss function was given. Arguments: folder, step to die at."""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import Trainer

OUT, STOP = Path(sys.argv[1]), int(sys.argv[2])


def loss_func(trainer, data):
    (numbers,) = data
    return trainer.model(numbers.unsqueeze(1)).mean() ** 2


def note(trainer, data):
    progress = trainer.progress
    entry = [GENERATION, trainer.rank, progress.epoch, progress.iteration, [int(n) for n in data[0].tolist()]]
    seen.write(json.dumps(entry) + "\n")
    if STOP and progress.step == STOP:
        trainer.save_and_stop()


torch.manual_seed(0)
model = nn.Linear(1, 1)
trainer = Trainer(
    OUT / "runs",
    model,
    torch.optim.SGD(model.parameters(), lr=1e-3),
    DataLoader(TensorDataset(torch.arange(33.0)), batch_size=4, shuffle=True),
    loss_func,
    hooks={"after_train_iteration_end": note},
    max_epochs=3 if os.environ.get("WORLD_SIZE") == "2" else 4,
    split_batches=True,
    drawer=None,
    ledger=True,
)
GENERATION = len(list((OUT / "runs/default/models/writers").glob("g????.json")))
with (OUT / f"seen_{GENERATION}_{trainer.rank}").open("w") as seen:
    trainer.train()
