"""Trains slowly and for long, says on each step what it has done, and stops as it is told."""

import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import Checkpoints, Trainer

place, policy, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3])


def loss_func(trainer, data):
    return nn.functional.mse_loss(trainer.model(data[0]), data[1])


def tell(trainer):
    print(f"step {trainer.progress.step}", flush=True)
    trainer.logger.info("written by %s", policy)
    time.sleep(0.02)


torch.manual_seed(0)
inputs = torch.linspace(-1, 1, 8).unsqueeze(1)
model = nn.Linear(1, 1)
Trainer(
    place,
    model,
    torch.optim.SGD(model.parameters(), lr=0.1),
    DataLoader(TensorDataset(inputs, 2 * inputs), batch_size=4),
    loss_func,
    hooks={"after_train_iteration_end": tell},
    checkpoints=Checkpoints(every_steps=1, keep_last=2),
    if_running=policy,
    max_epochs=epochs,
).train()
