"""Trains with dropout, Adam and loader workers, and says each iteration of each rank.

Arguments: folder; a file without which the last epoch does not begin.
"""

import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from minetorch import Trainer


class Slow(Dataset):
    def __init__(self):
        self.inputs = torch.linspace(-1, 1, 64 * 3).reshape(64, 3)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        time.sleep(0.001)
        return self.inputs[index], self.inputs[index].sum()


def loss_func(trainer, data):
    inputs, targets = data
    noisy = nn.functional.dropout(inputs, 0.2)  # in validation, too: its draws must come again
    return nn.functional.mse_loss(trainer.model(noisy).squeeze(1), targets)


def say(what):
    def hook(trainer):
        os.write(1, f"{what} {trainer.rank} {os.getpid()}\n".encode())

    return hook


def wait_at_the_last(trainer, epoch):
    deadline = time.monotonic() + 60
    while epoch == 3 and not Path(sys.argv[2]).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


if __name__ == "__main__":
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    Trainer(
        sys.argv[1],
        model,
        torch.optim.Adam(model.parameters(), lr=1e-2),
        DataLoader(Slow(), batch_size=4, shuffle=True, num_workers=2, persistent_workers=True),
        loss_func,
        DataLoader(Slow(), batch_size=8, num_workers=2),
        hooks={
            "before_epoch_start": wait_at_the_last,
            "after_train_iteration_end": say("trained"),
            "after_val_iteration_end": say("validated"),
        },
        drawer=None,
        max_epochs=3,
        persist_stride=None,
    ).train()
    print("returned")
