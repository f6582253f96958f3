"""Trains under load, and notes what it costs: place, code, steps an epoch, epochs, steps from one save to the next.

Each rank writes its notes to the folder of the variable NOTES: at every so many steps the time, and this process's
memory, open files and threads.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import Checkpoints, Trainer

PLACE, CODE, *NUMBERS = sys.argv[1:]
STEPS, EPOCHS, SAVE_EVERY, LOOK_EVERY = map(int, NUMBERS)
RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
BATCH = 4


def memory_kib():
    """Of this process alone."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))


class Look:
    def __init__(self):
        self.seen = []

    def after_train_iteration_end(self, trainer):
        step = trainer.progress.step
        if step == 1 or step % LOOK_EVERY == 0:
            threads, files = len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir()))
            self.seen.append([step, time.monotonic(), memory_kib(), files, threads])


def loss_func(trainer, data):
    return nn.functional.mse_loss(trainer.model(data[0]), data[1])


torch.manual_seed(0)
torch.set_num_threads(1)
inputs = torch.randn(STEPS * BATCH * WORLD, 8)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
look = Look()
trainer = Trainer(
    PLACE,
    model,
    torch.optim.Adam(model.parameters(), lr=1e-3),
    DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=BATCH, shuffle=True),
    loss_func,
    plugins=[look],
    code=CODE,
    drawer=None,
    max_epochs=EPOCHS,
    persist_stride=None,
    checkpoints=Checkpoints(every_steps=SAVE_EVERY or None, keep_last=3),
)
trainer.train()
note = {"rank": RANK, "steps": trainer.progress.step, "seen": look.seen, "threads": threading.active_count()}
Path(os.environ["NOTES"], f"{CODE.replace('/', '-')}-{RANK}.json").write_text(json.dumps(note))
