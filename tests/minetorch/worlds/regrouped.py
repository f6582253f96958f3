"""Trains on numbered samples, on any number of workers.

Arguments: folder, kind of data, iteration of epoch 2 to stop at (-1: none).
Every rank's plugin state is rank 0's at a save, so rank 0 gathers what all have seen, in the epoch's global order.
"""

import json
import sys
from pathlib import Path

import torch
from exact import KINDS, Case, loss_func, make_model
from torch import nn

import minetorch

OUT, KIND, STOP = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])


class Ledger:
    """What all ranks have seen: the epoch, the sample, and the sum of its augmented input."""

    def __init__(self):
        self.rows = []

    def after_train_iteration_end(self, trainer, index, data, loss):
        numbers, inputs, _ = data
        own = [[trainer.current_epoch, int(n), float(x.double().sum())] for n, x in zip(numbers, inputs, strict=True)]
        rows = [row for rows in trainer.world.gather(own) for row in rows]
        new = trainer.progress.samples - len(self.rows)
        # The last ranks borrow a sample each where there are fewer than ranks.
        borrows = len(rows) > new and trainer.rank >= new
        self.rows += rows[:new]
        total = trainer.reduce(0.0 if borrows else float(loss.detach()) * len(numbers), "sum") / new
        if KIND == "split":
            trainer.drawer.scalar(total, "each", x=trainer.progress.samples)
        if (trainer.current_epoch, index) == (2, STOP):
            trainer.save_and_stop()

    def state_dict(self):
        return {"rows": [list(row) for row in self.rows]}

    def load_state_dict(self, state):
        self.rows = [list(row) for row in state["rows"]]


if __name__ == "__main__":
    torch.manual_seed(0)
    model = make_model(Case())
    for layer in model:
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # its draws are each rank's own
    ledger = Ledger()
    split = KIND == "split"
    loader = KINDS["shuffled" if split else KIND](98, num_workers=1)
    trainer = minetorch.Trainer(
        OUT / "runs",
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        loader,
        loss_func,
        plugins=[ledger],
        split_batches=split,
        max_epochs=3,
        persist_stride=None,
        drawer=None,
    )
    trainer.train()
    if trainer.is_main:
        found = {
            "samples": ledger.rows,
            "order": [number for _, number, _ in ledger.rows],
            "count": trainer.progress.samples,
            "curve": [(x, y) for graph, _, x, y in trainer.drawer.curves.points() if graph == "each"],
        }
        (OUT / "seen.json").write_text(json.dumps(found))
