"""Stops three workers in many ways, one after another. Each rank writes to its own file where it was then."""

import json
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset

from minetorch import StoppedEarly, Trainer, main_only

OUT = Path(sys.argv[1])
RANK = int(os.environ["RANK"])
FOUND = {}


class Numbers(Dataset):
    def __init__(self, length, on_read=lambda index: None):
        self.length, self.on_read = length, on_read

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.on_read(index)
        return torch.tensor([index / self.length])


def loss_func(trainer, data):
    return trainer.model(data).square().mean()


def run(case, *, train=36, val=12, on_read=lambda index: None, **changes):
    """Train in epochs of 6 iterations a rank, with validations of 4, and note where it ended and how."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    began = time.monotonic()
    trainer = Trainer(
        OUT / "runs",
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(Numbers(train, on_read), batch_size=2, shuffle=True),
        loss_func,
        DataLoader(Numbers(val), batch_size=1),
        code=case,
        **{"max_epochs": 3, "drawer": None, "persist_stride": None} | changes,
    )
    code = 0
    try:
        trainer.train()
    except StoppedEarly as stop:
        code = stop.code
    progress = trainer.progress
    weights = [round(float(value), 9) for value in model.parameters()]
    FOUND[case] = {
        "at": [progress.epoch, progress.iteration, progress.step],
        "complete": progress.epoch_complete,
        "code": code,
        "weights": weights,
        "seconds": time.monotonic() - began,
    }
    return trainer


def once(rank, act, **where):
    """A hook that acts on one rank, once, where the payload is as `where`."""
    acted = []

    def hook(trainer, **payload):
        values = {"epoch": trainer.current_epoch, **payload}
        if trainer.rank == rank and not acted and all(values[name] == value for name, value in where.items()):
            acted.append(1)
            act(trainer)

    return hook


def term(trainer=None):
    signal.raise_signal(signal.SIGTERM)


MOMENTS = {
    "before_epoch_start": {"epoch": 2},
    "before_train_iteration_start": {"epoch": 2, "index": 2},
    "after_train_iteration_end": {"epoch": 1, "index": 5},
    "before_val_iteration_start": {"epoch": 2, "index": 1},
    "after_val_iteration_end": {"epoch": 1, "index": 3},
    "after_epoch_end": {"epoch": 2},
}


def a_notice_to_any_rank_at_any_moment():
    for rank in range(3):
        for point, where in MOMENTS.items():
            run(f"notice {rank} {point}", hooks={point: once(rank, term, **where)})


def a_notice_amid_a_long_epoch():
    run("long epoch", train=600, hooks={"after_train_iteration_end": once(1, term, index=19)})


def a_notice_amid_an_accumulation():
    hook = {"after_train_iteration_end": once(2, term, epoch=1, index=0)}
    run("accumulation", accumulated_iter=3, hooks=hook)


def a_hook_of_any_rank_stops_all():
    def stop(trainer):
        trainer.save_and_stop()

    alone = main_only(once(0, stop, index=3))
    run("main only", hooks={"after_train_iteration_end": alone})
    run("rank 2", hooks={"after_train_iteration_end": once(2, stop, index=3)})
    graceful = {"after_val_iteration_end": once(1, lambda trainer: trainer.graceful_stop(), index=0)}
    run("graceful", hooks=graceful)
    main = main_only(once(0, lambda trainer: trainer.graceful_stop()))
    run("graceful main only", hooks={"before_train_iteration_start": main})
    # Before the first step there is nothing that could agree on one.
    run("before it trains", hooks={"after_init": once(1, stop)})


def a_notice_during_a_long_validation_of_the_others_shortens_theirs():
    def linger(trainer):
        time.sleep(0 if trainer.rank == 1 else 0.05)

    hooks = {"before_val_iteration_start": once(1, term, index=0), "after_val_iteration_end": linger}
    run("long validation", val=1800, hooks=hooks)


def a_notice_during_a_long_hook_is_not_lost():
    def interrupted(trainer):
        timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        timer.start()
        time.sleep(0.5)
        timer.join()

    run("long hook", hooks={"after_epoch_end": once(1, interrupted, epoch=1)})


def a_notice_while_the_first_batch_is_awaited_is_not_lost():
    read = []

    def on_read(index):
        read.append(index)
        if RANK == 1 and len(read) == 1:
            term()

    run("first batch", on_read=on_read)


def deadlines():
    slow = {"after_val_iteration_end": lambda trainer: time.sleep(0.05)}
    run("max_time in validation", max_time=0.5, val=1800, hooks=slow)
    now = time.time()
    with environment(SLURM_JOB_START_TIME=str(int(now - 1000)), SLURM_JOB_END_TIME=str(int(now + 100))):
        run("end of the job")


@contextmanager
def environment(**variables):
    """As under plain `srun`, without a launcher."""
    attempt = os.environ.pop("MINETORCH_ATTEMPT")
    os.environ.update(variables)
    yield
    os.environ["MINETORCH_ATTEMPT"] = attempt
    for name in variables:
        del os.environ[name]


def saves_asked_for_by_all_ranks_at_once_go_on():
    """Rounds all the time, of which none may lose a step or wait for ever."""
    trainer = run("saves", train=600, hooks={"after_train_iteration_end": lambda trainer: trainer.save_soon()})
    FOUND["saves"]["starts"] = len(trainer.history.starts)


a_notice_to_any_rank_at_any_moment()
a_notice_amid_a_long_epoch()
a_notice_amid_an_accumulation()
a_hook_of_any_rank_stops_all()
a_notice_during_a_long_validation_of_the_others_shortens_theirs()
a_notice_during_a_long_hook_is_not_lost()
a_notice_while_the_first_batch_is_awaited_is_not_lost()
deadlines()
saves_asked_for_by_all_ranks_at_once_go_on()
(OUT / f"rank_{dist.get_rank()}.json").write_text(json.dumps(FOUND))
