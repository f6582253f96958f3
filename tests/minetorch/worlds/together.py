"""What two workers do together. Each check stands for itself; each rank writes what it found to its own file."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import Checkpoints, CollectiveError, ConfigurationError, RemoteError, StorageError, Trainer, main_only
from minetorch.plugins import EMA
from minetorch.resumption.broadcast import read_once

OUT = Path(sys.argv[1])
FOUND = {}


def data(length):
    inputs = torch.linspace(-1, 1, length).unsqueeze(1)
    return TensorDataset(inputs, 2 * inputs + 1)


def loss_func(trainer, data):
    return nn.functional.mse_loss(trainer.model(data[0]), data[1])


def make(code, *, model=None, train=21, val=5, **changes):
    torch.manual_seed(0)
    model = model or nn.Linear(1, 1)
    return Trainer(
        OUT / "runs",
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(data(train), batch_size=2, shuffle=True),
        loss_func,
        DataLoader(data(val), batch_size=1),
        code=code,
        **{"max_epochs": 2, "drawer": "matplotlib"} | changes,
    )


def refused(action):
    try:
        action()
    except CollectiveError as error:
        return str(error)
    return None


def hooks_run_on_every_rank_and_main_only_on_rank_0():
    calls = []
    trainer = make(
        "hooks",
        hooks={
            "after_epoch_end": [lambda trainer: calls.append("all"), main_only(lambda trainer: calls.append("main"))],
            "before_quit": lambda trainer: trainer.drawer.scalar(trainer.rank, "rank"),
        },
    )
    trainer.train()
    FOUND["hook calls"] = calls
    FOUND["curves"] = sorted(curve for _, curve, _, _ in trainer.drawer.curves.points())
    FOUND["metrics"] = trainer.metrics
    FOUND["weights"] = [p.tolist() for p in trainer.unwrapped_model.parameters()]


def a_main_only_hook_sees_the_whole_data():
    seen = {}

    @main_only
    def look(trainer):
        seen["alone"] = sorted(float(x) for inputs, _ in trainer.val_dataloader for x in inputs)
        seen["batches"] = len(trainer.train_dataloader)

    def look_together(trainer):
        seen["together"] = sorted(float(x) for inputs, _ in trainer.val_dataloader for x in inputs)

    make("whole", hooks={"after_epoch_end": [look, look_together]}, max_epochs=1).train()
    FOUND["looked at"] = seen


def reductions():
    trainer = make("reductions")
    rank = trainer.rank
    FOUND["reduce"] = [trainer.reduce(rank, op) for op in ("mean", "sum", "min", "max")]
    FOUND["reduce tensor"] = trainer.reduce(torch.tensor([rank, 4 * rank])).tolist()
    FOUND["broadcast"] = trainer.world.broadcast(f"from {rank}")


def a_state_is_read_once():
    """Tensors of every kind arrive as they are; what fits the model is received in the model."""
    world = make("read").world
    base = torch.arange(24, dtype=torch.float32)
    kinds = {
        "small": torch.tensor(3),
        "empty": torch.empty(0, 3),
        "bool": base > 5,
        "half": base.to(torch.bfloat16),
        "complex": torch.complex(base, base),
        "transposed": base.view(4, 6).t(),
        "channels last": base.view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        "part": base.view(4, 6)[:, 1:3],
        "expanded": torch.ones(1).expand(5),
        "sparse": torch.eye(3).to_sparse(),
        "with gradient": torch.ones(2, requires_grad=True),
        "parameter": nn.Parameter(torch.ones(2)),
        "large": torch.arange(6_000_000),
    }
    saved = {
        "state_dict": {"weight": base.view(4, 6), "other": base},
        "kinds": kinds,
        "tied": [base, base],
        "path": "x",
    }
    weight = torch.zeros(4, 6)
    state = read_once(lambda: saved, lambda: {"weight": weight, "other": torch.zeros(3)}, world)
    received = state["kinds"]
    FOUND["read once"] = {
        name: torch.equal(received[name].to_dense(), value.to_dense())
        and (received[name].dtype, received[name].stride() if name != "sparse" else 0)
        == (value.dtype, value.stride() if name != "sparse" else 0)
        and received[name].requires_grad == value.requires_grad
        and type(received[name]) is type(value)
        for name, value in kinds.items()
    } | {
        "in place": world.is_main or state["state_dict"]["weight"] is weight,
        "weight": torch.equal(state["state_dict"]["weight"], base.view(4, 6)),
        "other layout": torch.equal(state["state_dict"]["other"], base),
        "tied": state["tied"][0] is state["tied"][1],
        "rest": state["path"] == "x",
        "none": read_once(lambda: None, dict, world) is None,
    }


def a_resumed_state_is_the_same_on_every_rank():
    def start(epochs):
        model = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        ema, teacher = EMA(0.9), nn.Linear(2, 2)
        options = {"plugins": [ema], "statable": {"teacher": teacher}}
        trainer = make("resumed", model=model, train=20, max_epochs=epochs, **options)
        return trainer, [
            *model.state_dict().values(),
            *ema.state_dict()["average"].values(),
            *teacher.state_dict().values(),
        ]

    trainer, _ = start(1)
    trainer.train()
    trainer, tensors = start(2)
    FOUND["resumed after"] = trainer.progress.step
    FOUND["resumed state"] = [tensor.flatten().tolist() for tensor in tensors]
    trainer.train()


def collectives_where_only_one_rank_runs_are_refused():
    model = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    trainer = make("alone", model=model)

    def forward_and_backward():
        trainer.model(torch.ones(2, 1)).sum().backward()

    def validate():
        with torch.no_grad():
            FOUND["forward on one rank"] = list(trainer.model(torch.ones(2, 1)).shape)

    if trainer.is_main:
        with trainer.world.alone("a hook"):
            validate()
            FOUND["refused"] = [
                refused(lambda: trainer.reduce(1)),
                refused(trainer.world.barrier),
                refused(lambda: dist.all_reduce(torch.ones(1))),
                refused(lambda: trainer.persist("x")),
                refused(forward_and_backward),
            ]
    trainer.world.barrier()


def an_uneven_validation_of_a_model_with_buffers_ends():
    model = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    seen = []
    # BatchNorm cannot take a last batch of one sample, which 21 would leave.
    make(
        "uneven", model=model, train=20, val=7, hooks={"after_val_iteration_end": lambda trainer, data: seen.append(1)}
    ).train()
    FOUND["validated"] = len(seen)
    FOUND["statistics"] = model[1].running_mean.tolist()


def an_error_of_rank_0_is_everyones():
    def fail():
        raise StorageError("the disk is full")

    try:
        make("error").world.on_main(fail)
    except (StorageError, RemoteError) as error:
        FOUND["error"] = [type(error).__name__, str(error)]


def a_save_that_fails_is_everyones():
    models = OUT / "runs/failing/models"

    def break_the_disk(trainer):
        if trainer.is_main and trainer.current_epoch == 2:
            models.rename(OUT / "moved")
            models.write_text("no folder")
        trainer.world.barrier()

    try:
        make("failing", hooks={"before_epoch_start": break_the_disk}, max_epochs=9).train()
    except (StorageError, RemoteError) as error:
        FOUND["failed save"] = [type(error).__name__, str(error)]


def one_rank_stops_all():
    def stop(trainer, index):
        if trainer.rank == 1 and trainer.current_epoch == 1 and index == 1:
            trainer.save_and_stop()

    trainer = make("stop", hooks={"after_train_iteration_end": stop})
    trainer.train()
    FOUND["stopped at"] = [trainer.progress.epoch, trainer.progress.iteration]
    trainer = make("stop")
    FOUND["resumed at"] = [trainer.progress.epoch, trainer.progress.iteration]
    trainer.train()
    FOUND["resumed weights"] = [p.tolist() for p in trainer.unwrapped_model.parameters()]

    graceful = {"before_epoch_start": lambda trainer: trainer.rank == 1 and trainer.graceful_stop()}
    trainer = make("graceful", hooks=graceful, max_epochs=9)
    trainer.train()
    FOUND["graceful"] = trainer.progress.epoch


def accumulating_exchanges_gradients_at_the_step_only():
    trainer = make("accumulated", accumulated_iter=4, checkpoints=Checkpoints(every_steps=1))
    trainer.train()
    FOUND["accumulated steps"] = trainer.progress.step
    FOUND["accumulated weights"] = [p.tolist() for p in trainer.unwrapped_model.parameters()]


def parameters_that_the_loss_does_not_use_are_named():
    class Model(nn.Linear):
        def __init__(self):
            super().__init__(1, 1)
            self.spare = nn.Linear(1, 1)

    try:
        make("unused", model=Model()).train()
    except ConfigurationError as error:
        FOUND["unused"] = str(error)


hooks_run_on_every_rank_and_main_only_on_rank_0()
a_main_only_hook_sees_the_whole_data()
reductions()
a_state_is_read_once()
a_resumed_state_is_the_same_on_every_rank()
collectives_where_only_one_rank_runs_are_refused()
an_uneven_validation_of_a_model_with_buffers_ends()
an_error_of_rank_0_is_everyones()
a_save_that_fails_is_everyones()
one_rank_stops_all()
accumulating_exchanges_gradients_at_the_step_only()
parameters_that_the_loss_does_not_use_are_named()
(OUT / f"rank_{dist.get_rank()}.json").write_text(json.dumps(FOUND))
