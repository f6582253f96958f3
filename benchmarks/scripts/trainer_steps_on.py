"""usage: trainer_steps_on.py REPORT STOP: as steps_on.py, under a Trainer that saves every few steps."""

import time

began = time.monotonic()

import os  # noqa: E402
import sys  # noqa: E402

import torch  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from minetorch import Checkpoints, Trainer  # noqa: E402

report, stop = sys.argv[1:]
told = False


def after_step(trainer):
    """Tell of the first step, and stop once we are asked to."""
    global told
    if not told:
        line = f"{trainer.rank} {os.getpid()} {began} {time.monotonic()}\n"
        descriptor = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())
        os.close(descriptor)
        told = True
    if os.path.exists(stop):  # noqa: PTH110 - as cheap as can be
        trainer.save_and_stop()
    time.sleep(0.01)


model = torch.nn.Linear(8, 8)
Trainer(
    os.path.dirname(report),  # noqa: PTH120
    model,
    torch.optim.SGD(model.parameters(), lr=0.01),
    DataLoader(TensorDataset(torch.randn(100_000, 8)), batch_size=4),
    lambda trainer, data: trainer.model(data[0]).square().mean(),
    hooks={"after_train_iteration_end": after_step},
    max_epochs=1,
    checkpoints=Checkpoints(every_steps=20, keep_last=2),
    drawer=None,
).train()
