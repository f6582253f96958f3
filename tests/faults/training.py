"""What every cell trains. The fault that the variable FAULT names befalls it once in the run's life.

FAULT is JSON: ``fault``, ``victim``, ``phase``, ``witness`` (the rank that tells the moment), ``inside`` (whether a
process of the script's strikes itself) and ``notes``, a folder: ``moment`` says that the phase is reached,
``struck`` that the fault has come. Who strikes from outside waits for the one and makes the other.
"""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

FAULT = json.loads(os.environ["FAULT"])
NOTES = Path(FAULT["notes"])
IS_ARMED = bool(FAULT["fault"]) and not (NOTES / "struck").exists()
RANK = int(os.environ["RANK"])
IN_LOADER = FAULT["victim"] == "loader worker"
SIGNALS = ("SIGKILL", "SIGSEGV", "SIGABRT", "SIGSTOP")
DEADLINE_S = 60


def mark(name):
    """Make a note, once; whether it is new. What it holds is the time."""
    try:
        with (NOTES / name).open("x") as file:
            file.write(repr(time.monotonic()))
    except FileExistsError:
        return False
    return True


def wait_for(name):
    end = time.monotonic() + DEADLINE_S
    while not (NOTES / name).exists():
        assert time.monotonic() < end, f"nobody has made {name}"
        time.sleep(0.005)


def reached(phase, pids=()):
    """The run is at a phase: strike, or have it done, if it is the one."""
    if not IS_ARMED or phase != FAULT["phase"] or FAULT["witness"] != RANK:
        return
    if not FAULT["inside"]:
        if mark("moment"):
            wait_for("struck")
    elif IN_LOADER:
        import multiprocessing

        if FAULT["fault"] not in SIGNALS:
            mark("moment")  # it strikes itself, at its next sample
        elif mark("struck"):
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.Signals[FAULT["fault"]])
    elif FAULT["victim"] == f"rank {RANK}":
        strike()
    elif FAULT["fault"] in SIGNALS:
        if mark("struck"):
            os.kill(pids[1], signal.Signals[FAULT["fault"]])
    elif mark("moment"):
        wait_for("struck")  # the other rank strikes itself, between two iterations


def strike_if_told():
    """For who is not the witness, and must see the moment himself."""
    if IS_ARMED and FAULT["inside"] and (NOTES / "moment").exists() and not (NOTES / "struck").exists():
        strike()


def strike():
    """What the fault is, from within."""
    fault = FAULT["fault"]
    if not mark("struck"):
        return
    if fault == "exception":
        raise RuntimeError("struck")
    if fault == "sys.exit":
        sys.exit(7)
    if fault in SIGNALS:
        os.kill(os.getpid(), signal.Signals[fault])
    elif fault == "GIL held":
        ctypes.PyDLL(None).sleep(1000)
    elif fault == "SIGTERM ignored":
        ctypes.CDLL(None).signal(signal.SIGTERM, ctypes.c_void_p(1))  # SIG_IGN; Python's own is for the main thread
        (NOTES / "deaf").touch()
        time.sleep(1000)
    elif fault == "out of memory":
        Path(FAULT["group"], "cgroup.procs").write_text("0")
        held = []
        while True:
            held.append(b"x" * (1 << 24))
    elif fault == "clock set back":
        import sitecustomize

        sitecustomize.own_is_set_back = True


reached("import")

import hashlib  # noqa: E402

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

from minetorch import Checkpoints, Trainer  # noqa: E402
from minetorch.checkpoint import checkpointer as checkpointers  # noqa: E402
from minetorch.checkpoint import writer  # noqa: E402
from minetorch.checkpoint.checkpointer import Checkpointer  # noqa: E402
from minetorch.checkpoint.staging import Stager  # noqa: E402

EPOCHS = FAULT.get("epochs", 3)
EPOCH, ITERATION, SAVE = 2, 2, 2
"""In which of them it strikes."""


class Noisy(Dataset):
    """Samples with random noise, of which a loader worker may die."""

    def __init__(self, length, phases):
        self.length = length
        self.phases = phases

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if IN_LOADER and IS_ARMED and FAULT["witness"] == RANK and FAULT["phase"] in self.phases:
            if FAULT["phase"] == "first step" and FAULT["fault"] not in SIGNALS:
                strike()
            strike_if_told()
        inputs = torch.linspace(-1, 1, 8).roll(index) + 0.01 * torch.randn(8)
        return index, inputs, inputs.sum()


class Diary:
    """Each iteration's samples and loss: its state is in the checkpoints."""

    def __init__(self):
        self.lines = []

    def after_train_iteration_end(self, trainer, data, loss):
        self.lines.append(f"{trainer.current_epoch} {data[0].tolist()} {float(loss).hex()}")

    def state_dict(self):
        return {"lines": list(self.lines)}

    def load_state_dict(self, state):
        self.lines = list(state["lines"])


saves, pids = [], []


def around(owner, name, before):
    inner = getattr(owner, name)

    def call(*args, **kwargs):
        before(*args)
        return inner(*args, **kwargs)

    setattr(owner, name, call)


def in_save(phase):
    if len(saves) == SAVE:
        reached(phase, pids)


around(dist, "init_process_group", lambda *args: reached("process group"))
around(Stager, "stage", lambda *args: (saves.append(1), in_save("staging")))
# A file that is open for writing keeps its disk from becoming read-only.
if FAULT["fault"] in ("full disk", "read-only disk"):
    around(checkpointers, "write_payload", lambda *args: in_save("upload"))
else:
    around(writer._DigestingFile, "write", lambda *args: in_save("upload"))
around(Checkpointer, "_write_manifest", lambda *args: in_save("commit"))
around(Checkpointer, "tidy", lambda *args: in_save("after commit"))


def skips(phase, do):
    """All do it, but for the victim."""
    if not IS_ARMED or FAULT["fault"] != "collective skipped" or phase != FAULT["phase"]:
        return
    if FAULT["victim"] == f"rank {RANK}":
        mark("struck")
    else:
        do()


def at(phase, do):
    if FAULT["fault"] == "collective skipped":
        skips(phase, do)
    else:
        reached(phase, pids)


def loss_func(trainer, data):
    if trainer.model.training and trainer.progress.step == 0:
        at("first step", lambda: trainer.reduce(1))
    return nn.functional.mse_loss(trainer.model(data[1]).squeeze(1), data[2])


def begin(trainer):
    pids.extend(trainer.world.gather(os.getpid()))


def before_iteration(trainer, index):
    if (trainer.current_epoch, index) == (EPOCH, ITERATION):
        at("mid-epoch", lambda: trainer.reduce(1))


def after_iteration(trainer, index):
    if FAULT["victim"] == f"rank {RANK}":
        strike_if_told()
    if FAULT["fault"] == "collective skipped" and (trainer.current_epoch, index) == (EPOCH, ITERATION):
        skips("staging", trainer.persist)


def before_validation(trainer, index):
    if (trainer.current_epoch, index) == (EPOCH, 0):
        at("validation", lambda: trainer.reduce(1))


def digest(value):
    """Of tensors and plain values in any nest, to the bit."""
    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return hashlib.sha256(data).hexdigest()
    if isinstance(value, dict):
        return digest([[str(key), digest(inner)] for key, inner in value.items()])
    if isinstance(value, list | tuple):
        return hashlib.sha256("".join(map(digest, value)).encode()).hexdigest()
    return hashlib.sha256(repr(value).encode()).hexdigest()


def write_result(trainer, diary):
    """Everything at the end, by name."""
    state = trainer.strategy.state_dict()
    result = {
        "weights": digest(state["state_dict"]),
        "optimizer": digest(state["optimizer"]),
        "progress": digest(trainer.progress.state_dict()),
        "metrics": digest(trainer.metrics),
        "curves": digest(sorted(trainer.drawer.curves.points())),
        "diary": digest(diary.lines),
    }
    (NOTES / "result.tmp").write_text(json.dumps(result))
    (NOTES / "result.tmp").replace(NOTES / "result.json")


def main():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.BatchNorm1d(16), nn.Linear(16, 1))
    diary = Diary()
    trainer = Trainer(
        sys.argv[1],
        model,
        torch.optim.AdamW(model.parameters(), lr=1e-2),
        DataLoader(Noisy(64, ("first step", "mid-epoch")), batch_size=4, shuffle=True, num_workers=1),
        loss_func,
        DataLoader(Noisy(24, ("validation",)), batch_size=2, num_workers=1),
        plugins=[diary],
        hooks={
            "after_init": begin,
            "before_train_iteration_start": before_iteration,
            "after_train_iteration_end": after_iteration,
            "before_val_iteration_start": before_validation,
        },
        drawer=None,
        max_epochs=EPOCHS,
        checkpoints=Checkpoints(every_steps=3),
    )
    trainer.train()
    reached("exit")
    if trainer.is_main:
        write_result(trainer, diary)


main()
