"""Trains with a storage that grows slow, or with a rank that crashes while all agree on saves. Arguments: place, how.

How: the seconds that each payload takes after the first one, "raises" or "exits".
"""

import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import Checkpoints, Trainer
from minetorch.checkpoint import checkpointer as checkpointers
from minetorch.checkpoint import writer

PLACE, HOW = Path(sys.argv[1]), sys.argv[2]
write_payload, write = checkpointers.write_payload, writer._DigestingFile.write


def slowly(store, name, state):
    """Slow amid the payload."""
    waits = [] if state["progress"]["step"] == 3 else [float(HOW)]

    def write_slowly(file, data):
        while waits:
            time.sleep(waits.pop())
        return write(file, data)

    writer._DigestingFile.write = write_slowly
    return write_payload(store, name, state)


def say(trainer):
    print("slow from now on", flush=True)


def crash(trainer, index):
    trainer.save_soon()
    if trainer.rank == 1 and trainer.progress.step == 40:
        (PLACE / "crashed").write_text(str(time.time()))
        if HOW == "exits":
            os._exit(3)
        raise ValueError("of its own doing")


def pause(trainer):
    time.sleep(0.02)


def loss_func(trainer, data):
    return nn.functional.mse_loss(trainer.model(data[0]), data[1])


stores = HOW.isdecimal()
if stores:
    checkpointers.write_payload = slowly
torch.manual_seed(0)
inputs = torch.randn(8000, 3)
model = nn.Linear(3, 1)
trainer = Trainer(
    PLACE,
    model,
    torch.optim.SGD(model.parameters(), lr=1e-2),
    DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True)), batch_size=4, shuffle=True),
    loss_func,
    hooks={"after_train_iteration_end": pause, "after_checkpoint_persisted": say}
    if stores
    else {"after_train_iteration_end": crash},
    drawer=None,
    max_epochs=1,
    persist_stride=None,
    checkpoints=Checkpoints(every_steps=3 if stores else None),
)
try:
    trainer.train()
except Exception:
    if trainer.is_main:
        (PLACE / "ended").write_text(str(time.time()))
    raise
