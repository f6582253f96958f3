"""Trains a model of 4 MB."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import Trainer


def loss_func(trainer, data):
    return trainer.model(data[0]).square().mean()


torch.manual_seed(0)
model = nn.Linear(1000, 1000)
data = TensorDataset(torch.ones(8, 1000))
Trainer(
    sys.argv[1],
    model,
    torch.optim.SGD(model.parameters(), lr=0.1),
    DataLoader(data, batch_size=1),
    loss_func,
    max_epochs=int(sys.argv[2]),
    drawer=None,
).train()
