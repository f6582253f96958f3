"""Trains with all that a run keeps, and is killed as soon as a checkpoint is durable at or after a step.

Arguments: where the runs are, the step (0: never), where to write what there is at the end, and perhaps a file with
storage options.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import minetorch

RUNS, KILL, OUT = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
OPTIONS = json.loads(Path(sys.argv[4]).read_text()) if len(sys.argv) > 4 else None


class Tally:
    """A plugin with a state: the losses of all iterations since the run began."""

    def __init__(self):
        self.losses = []

    def after_train_iteration_end(self, trainer, loss):
        self.losses.append(float(loss))
        trainer.drawer.scalar(len(self.losses), "tally", x=trainer.progress.step)

    def after_epoch_end(self, trainer):
        trainer.logger.info("the tally is %d", len(self.losses))

    def state_dict(self):
        return {"losses": torch.tensor(self.losses, dtype=torch.float64)}

    def load_state_dict(self, state):
        self.losses = state["losses"].tolist()


def loss_func(trainer, data):
    return nn.functional.mse_loss(trainer.model(data[0]), data[1])


def step_scheduler(trainer):
    scheduler.step()


def die(trainer):
    if KILL and trainer.progress.step >= KILL:
        os.kill(os.getpid(), signal.SIGKILL)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
inputs = torch.randn(64, 3)
data = TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))
tally = Tally()
trainer = minetorch.Trainer(
    RUNS,
    model,
    optimizer,
    DataLoader(data, batch_size=4, shuffle=True),
    loss_func,
    DataLoader(data, batch_size=8),
    code="moving",
    drawer=["matplotlib", "tensorboard"],
    statable={"scheduler": scheduler},
    plugins=[tally],
    hooks={"after_epoch_end": step_scheduler, "after_checkpoint_persisted": die},
    max_epochs=3,
    checkpoints=minetorch.Checkpoints(every_steps=5),
    storage_options=OPTIONS,
)
trainer.train()

weights = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
moments = b"".join(state["exp_avg_sq"].numpy().tobytes() for state in optimizer.state_dict()["state"].values())
result = {
    "weights": hashlib.sha256(weights).hexdigest(),
    "moments": hashlib.sha256(moments).hexdigest(),
    "rate": scheduler.get_last_lr(),
    "tally": tally.losses,
    "curves": sorted(trainer.drawer.curves.points()),
    "step": trainer.progress.step,
}
OUT.write_text(json.dumps(result))
