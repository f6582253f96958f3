"""Fits a line, soundly or with a fault that `minetorch prove` is to find; one Trainer for each fault.

Arguments: the faults ("sound" for none), the folder of the runs, and options such as epochs=3.
"""

import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from minetorch import Checkpoints, Trainer

FAULTS = sys.argv[1].split(",")
FOLDER = Path(sys.argv[2])
OPTIONS = dict(option.split("=") for option in sys.argv[3:])


class Points(Dataset):
    def __init__(self, fault):
        self.fault = fault
        self.points = torch.linspace(-1, 1, 48).unsqueeze(1)
        self.read = 0

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        self.read += 1
        point = self.points[index]
        if self.fault == "augmentation":
            point = point + int.from_bytes(os.urandom(2), "big") / 2**20
        if self.fault == "cache" and self.read > 20:
            point = point * 2
        return point, 2 * self.points[index] + 1


class Shuffled(torch.utils.data.Sampler):
    """A sampler with a generator of nobody's."""

    def __iter__(self):
        generator = torch.Generator()
        generator.seed()
        return iter(torch.randperm(48, generator=generator).tolist())

    def __len__(self):
        return 48


class Model(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.register_buffer("calls", torch.zeros(()), persistent=fault != "buffer")

    def forward(self, inputs):
        if self.training:
            self.calls += 1
        return self.layers(inputs)


def train(fault):
    if fault != "weights":
        torch.manual_seed(0)
    model = Model(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    steps = []

    def loss_func(trainer, data):
        inputs, targets = data
        loss = nn.functional.mse_loss(trainer.model(inputs), targets)
        if fault == "clock":
            loss = loss * (1 + time.time() % 1)
        if fault == "counter":
            steps.append(1)
            loss = loss / len(steps)
        return loss

    def after_iteration(trainer):
        scheduler.step()
        if fault == "crash" and trainer.progress.step == 5:
            raise RuntimeError("the script's own fault")

    sampler = Shuffled() if fault == "sampler" else None
    workers = int(fault == "augmentation")
    Trainer(
        FOLDER,
        model,
        optimizer,
        DataLoader(Points(fault), 4, sampler=sampler, shuffle=sampler is None, num_workers=workers),
        loss_func,
        code=fault,
        hooks={"after_train_iteration_end": after_iteration},
        statable={} if fault == "scheduler" else {"scheduler": scheduler},
        max_epochs=None if fault == "endless" else int(OPTIONS.get("epochs", 3)),
        checkpoints=Checkpoints(every_steps=5),
        drawer=None,
        split_batches=True,
    ).train()


for fault in FAULTS:
    train(fault)
