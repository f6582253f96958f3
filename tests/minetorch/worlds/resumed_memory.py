"""Saves a state of 100 MB and resumes from it; each rank writes how much memory it took beyond what it has after."""

import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import Trainer

OUT, WHAT = Path(sys.argv[1]), sys.argv[2]


def memory(kind):
    """Bytes of this process: `VmRSS`, those of now, or `VmHWM`, the most since `clear_refs` was written."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(kind))


torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(1, 4_000_000), nn.Linear(4_000_000, 1, bias=False))
Path("/proc/self/clear_refs").write_text("5")
trainer = Trainer(
    OUT / "runs",
    model,
    torch.optim.Adam(model.parameters()),
    DataLoader(TensorDataset(torch.ones(8, 1)), batch_size=1),
    lambda trainer, data: trainer.model(data[0]).mean(),
    drawer=None,
    max_epochs=1,
)
if WHAT == "save":
    trainer.train()
else:
    assert trainer.progress.step == 2
    (OUT / f"{trainer.rank}.json").write_text(json.dumps(memory("VmHWM") - memory("VmRSS")))
    trainer.close()
