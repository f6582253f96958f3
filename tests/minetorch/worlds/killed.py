"""One run with workers, augmentation, dropout and accumulation, that is ended in epoch 2 in one of several ways.

Arguments: where the runs are, and how it ends ("" to be left alone). Rank 0 writes what there is at the end.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from exact import Augmented, Case, Diary, end_of, loss_func, make_model, make_optimizer
from torch.utils.data import DataLoader

import minetorch

OUT, HOW = Path(sys.argv[1]), sys.argv[2]
MODELS = OUT / "runs/default/models"


def strike(trainer, index):
    if index % 2:
        scheduler.step()
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if not HOW or not first or (trainer.current_epoch, index) != (2, 5):
        return
    wait_for_checkpoint_amid_epoch(2)
    trainer.world.barrier()
    if HOW == "storage":
        if trainer.is_main:
            MODELS.rename(OUT / "moved")
            MODELS.write_text("no folder")
        trainer.world.barrier()
    elif HOW == "all":
        os.kill(os.getpid(), signal.SIGKILL)
    elif HOW in ("launcher", "USR2 to the launcher"):
        if trainer.is_main:
            os.kill(int((OUT / "launcher").read_text()), signal.SIGKILL if HOW == "launcher" else signal.SIGUSR2)
        if HOW == "launcher":
            time.sleep(60)
    elif trainer.rank == 1:
        os.kill(os.getpid(), {"rank": signal.SIGKILL, "TERM": signal.SIGTERM, "USR2": signal.SIGUSR2}[HOW])


def wait_for_checkpoint_amid_epoch(epoch):
    deadline = time.monotonic() + 60
    while not [path for path in MODELS.glob("g*.json") if json.loads(path.read_text())["epoch"] == epoch]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


if __name__ == "__main__":
    torch.manual_seed(0)
    case = Case(accumulate=2, amp=True)
    model = make_model(case)
    optimizer, scheduler = make_optimizer(case, model)
    diary = Diary()
    loader = DataLoader(Augmented(110), batch_size=4, shuffle=True, num_workers=1, persistent_workers=True)
    trainer = minetorch.Trainer(
        OUT / "runs",
        model,
        optimizer,
        loader,
        loss_func,
        DataLoader(Augmented(10), batch_size=4),
        statable={"scheduler": scheduler},
        plugins=[diary],
        hooks={"after_train_iteration_end": strike},
        max_epochs=3,
        checkpoints=minetorch.Checkpoints(every_steps=2),
        accumulated_iter=2,
        amp="bf16",
    )
    trainer.train()
    ends = trainer.world.gather(end_of(trainer, diary, scheduler))
    if trainer.is_main:
        (OUT / "end.json").write_text(json.dumps(ends))
