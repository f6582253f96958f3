"""Trains with dropout and Adam; rank 1 is killed in the middle of epoch 2. Arguments: folder, kill or not."""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import Checkpoints, Trainer

OUT, KILL = Path(sys.argv[1]), sys.argv[2] == "kill"


def loss_func(trainer, data):
    return nn.functional.mse_loss(trainer.model(data[0]), data[1])


def die_once(trainer, index):
    first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if KILL and first_attempt and (trainer.rank, trainer.current_epoch, index) == (1, 2, 4):
        wait_for_checkpoint_of(trainer.progress.step - 1)
        os.kill(os.getpid(), signal.SIGKILL)


def wait_for_checkpoint_of(step):
    deadline = time.monotonic() + 60
    while not list((OUT / "runs/default/models").glob(f"g*-s{step:09d}-*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
inputs = torch.randn(64, 3)
Trainer(
    OUT / "runs",
    model,
    torch.optim.Adam(model.parameters(), lr=1e-2),
    DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True)), batch_size=4, shuffle=True),
    loss_func,
    DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True)), batch_size=8),
    hooks={"after_train_iteration_end": die_once},
    max_epochs=3,
    checkpoints=Checkpoints(every_steps=3),
).train()
