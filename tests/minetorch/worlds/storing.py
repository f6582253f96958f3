"""Trains with a storage that grows slow, or with a rank that crashes while all agree on saves. Arguments: place, how.

How: the seconds that a payload takes from step 4 on (0: it is fast, and the run ends at once), "raises" or "exits".
"""

import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import Trainer
from minetorch.checkpoint import checkpointer as checkpointers
from minetorch.checkpoint import writer

PLACE, HOW = Path(sys.argv[1]), sys.argv[2]
write_payload, write = checkpointers.write_payload, writer._DigestingFile.write


def slowly(store, name, state):
    if state["progress"]["step"] == 3:
        return write_payload(store, name, state)
    writer._DigestingFile.write = lambda file, data: (write(file, data), time.sleep(float(HOW)))[0]
    try:
        return write_payload(store, name, state)
    finally:
        writer._DigestingFile.write = write


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


hooks = {"after_train_iteration_end": crash}
if HOW.isdecimal():
    hooks = {"after_train_iteration_end": pause, "after_checkpoint_persisted": say}
    if int(HOW):
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
    hooks=hooks,
    drawer=None,
    max_epochs=1,
    max_time=1 if HOW == "0" else None,
    persist_stride=None,
    persist_steps=3 if HOW.isdecimal() and int(HOW) > 100 else 1000,
)
if HOW == "1":
    trainer.persist_first = True
try:
    trainer.train()
except Exception:
    if trainer.is_main:
        (PLACE / "ended").write_text(str(time.time()))
    raise
