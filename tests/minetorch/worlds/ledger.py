"""Trains on numbers and writes down which of them each step has seen. Arguments: folder, iteration to stop at."""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import Trainer

OUT, STOP = Path(sys.argv[1]), int(sys.argv[2])
SEEN = []


def loss_func(trainer, data):
    (numbers,) = data
    return trainer.model(numbers.unsqueeze(1)).mean() ** 2


def note(trainer, index, data):
    SEEN.append((trainer.current_epoch, index, data[0].tolist()))
    if (trainer.current_epoch, index) == (2, STOP):
        trainer.save_and_stop()


torch.manual_seed(0)
model = nn.Linear(1, 1)
trainer = Trainer(
    OUT / "runs",
    model,
    torch.optim.SGD(model.parameters(), lr=1e-3),
    DataLoader(TensorDataset(torch.arange(48.0)), batch_size=2, shuffle=True),
    loss_func,
    hooks={"after_train_iteration_end": note},
    max_epochs=3,
    drawer=None,
)
trainer.train()
(OUT / f"seen_{os.environ.get('WORLD_SIZE', 1)}_{trainer.rank}.json").write_text(json.dumps(SEEN))
