"""Trains, and in its third save of each start a rank is killed. Arguments: place, folder for notes, moments.

Moments are as in "upload:1": amid rank 0's upload, rank 1; "slow" is an upload that goes on for 5 s after that. The
start after the last moment ends well.
"""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import Checkpoints, Trainer
from minetorch.checkpoint import checkpointer as checkpointers
from minetorch.checkpoint import writer
from minetorch.checkpoint.checkpointer import Checkpointer
from minetorch.checkpoint.names import CheckpointName
from minetorch.checkpoint.staging import Stager

PLACE, NOTES = sys.argv[1], Path(sys.argv[2])
ATTEMPT = int(os.environ["MINETORCH_ATTEMPT"])
MOMENTS = dict(enumerate(sys.argv[3].split(","), 1))
MOMENT, _, VICTIM = MOMENTS.get(ATTEMPT, ":0").partition(":")
saves, pids, uploading = [], [], []


def note(what, value):
    with (NOTES / f"{ATTEMPT}.{what}").open("w") as file:
        file.write(json.dumps(value))
        file.flush()
        os.fsync(file.fileno())


def strike(moment, step):
    """Kill the victim, and see it dead before going on."""
    if moment != MOMENT or saves[2:3] != [step] or (NOTES / f"{ATTEMPT}.struck").exists():
        return
    note("struck", step)
    pid = pids[int(VICTIM)]
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    with suppress(FileNotFoundError, ProcessLookupError):  # gone between two looks
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][1] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)
    if moment == "slow":
        time.sleep(5)


def around(owner, name, before=None, after=None):
    inner = getattr(owner, name)

    def call(*args, **kwargs):
        if before is not None:
            before(*args)
        result = inner(*args, **kwargs)
        if after is not None:
            after(*args)
        return result

    setattr(owner, name, call)


def step_of(file):
    return CheckpointName.of_file(file).step


around(Stager, "stage", before=lambda stager, state, *rest: saves.append(state["progress"]["step"]))
around(Stager, "stage", after=lambda stager, state, *rest: strike("staging", state["progress"]["step"]))
around(checkpointers, "write_payload", before=lambda store, file, state: uploading.append(step_of(file)))
around(writer._DigestingFile, "write", after=lambda file, data: strike("upload", uploading[-1]))
around(writer._DigestingFile, "write", after=lambda file, data: strike("slow", uploading[-1]))
around(Checkpointer, "_write_manifest", before=lambda checkpointer, manifest: strike("commit", manifest.step))
around(Checkpointer, "tidy", before=lambda checkpointer: strike("between", checkpointer.manifests[-1].step))


def begin(trainer):
    pids.extend(trainer.world.gather(os.getpid()))


def loss_func(trainer, data):
    return nn.functional.mse_loss(trainer.model(data[0]), data[1])


torch.manual_seed(0)
inputs = torch.randn(64, 3)
model = nn.Linear(3, 1)
trainer = Trainer(
    PLACE,
    model,
    torch.optim.SGD(model.parameters(), lr=1e-2),
    DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True)), batch_size=4, shuffle=True),
    loss_func,
    hooks={"after_init": begin},
    drawer=None,
    max_epochs=8,
    checkpoints=Checkpoints(every_steps=2),
    persist_stride=None,
)
last = trainer.history.starts[-1]
if trainer.is_main:
    note("start", {"step": last.step, "lost": last.steps_lost, "ended": last.ended, "down": last.down_s})
trainer.train()
if trainer.is_main:
    note("end", [start.generation for start in trainer.history.starts])
