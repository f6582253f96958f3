"""Trains with all drawers; at one step it waits until they have drawn everything, and kills itself.

usage: drawing.py DIRECTORY DATABASE STEP (0 for never)
"""

import os
import signal
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import MatplotlibDrawer, SqlDrawer, TensorboardDrawer, Trainer

directory, database, last_step = sys.argv[1], sys.argv[2], int(sys.argv[3])
inputs = torch.linspace(-1, 1, 20).unsqueeze(1)
drawers = [MatplotlibDrawer(interval_s=0), TensorboardDrawer(interval_s=0), SqlDrawer(database, interval_s=0)]
torch.manual_seed(0)
model = nn.Linear(1, 1)


def draw(trainer, loss):
    step = trainer.progress.step
    trainer.drawer.scalar(loss, "loss per step", x=step)
    if step == last_step:
        for drawer in drawers:
            while drawer._worker._asked:
                time.sleep(0.01)
            with drawer._worker._at_work:
                drawer._worker.raise_error()
        os.kill(os.getpid(), signal.SIGKILL)


trainer = Trainer(
    directory,
    model=model,
    optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    train_dataloader=DataLoader(TensorDataset(inputs, 2 * inputs + 1), batch_size=4),
    loss_func=lambda trainer, data: nn.functional.mse_loss(trainer.model(data[0]), data[1]),
    code="run",
    max_epochs=6,
    drawer=drawers,
    hooks={"after_train_iteration_end": draw},
)
trainer.train()
