"""Ways in which two ranks can come to train apart. Each rank writes what it found to its own file."""

import json
import re
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import Checkpoints, ConfigurationError, Exact, RanksDifferError, Trainer

OUT = Path(sys.argv[1])
FOUND = {}


def loss_of(model, data):
    return nn.functional.mse_loss(model(data[0]), data[1])


def make(code, loss_func, model=None, **changes):
    torch.manual_seed(0)
    model = model or nn.Linear(1, 1)
    inputs = torch.linspace(-1, 1, 16).unsqueeze(1)
    options = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "max_epochs": 2, "drawer": None} | changes
    loader = DataLoader(TensorDataset(inputs, 2 * inputs + 1), batch_size=2, shuffle=True)
    return Trainer(OUT / "runs", model, train_dataloader=loader, loss_func=loss_func, code=code, **options)


def attempt(code, *arguments, **options):
    """Train, and note the error and the checkpoints that there are then."""
    trainer = make(code, *arguments, **options)
    try:
        trainer.train()
        FOUND[code] = ["", ""]
    except (ConfigurationError, RanksDifferError) as error:
        FOUND[code] = [type(error).__name__, str(error)]
    trainer.world.barrier()
    FOUND[code].append(len(list((OUT / "runs" / code / "models").glob("g*.pth.tar"))))
    FOUND[code].append([value.tolist() for value in trainer.unwrapped_model.parameters()])
    return trainer


def a_model_that_is_called_by_its_own_name():
    model = nn.Linear(1, 1)
    attempt("own name", lambda trainer, data: loss_of(model, data), model)
    attempt("unwrapped", lambda trainer, data: loss_of(trainer.unwrapped_model, data))
    own = {"strategy": Exact(virtual_shards=2), "split_batches": True}
    attempt("exact", lambda trainer, data: loss_of(trainer.unwrapped_model, data), **own)


def only_the_last_iteration_of_a_step_must_call_it():
    def loss_func(trainer, data):
        return loss_of(trainer.model if trainer.progress.iteration % 2 else trainer.unwrapped_model, data)

    attempt("accumulated", loss_func, accumulated_iter=2)
    attempt("accumulated wrongly", lambda trainer, data: loss_of(trainer.unwrapped_model, data), accumulated_iter=2)


def a_lightning_module_as_the_guide_wraps_it():
    class Module(nn.Linear):
        """Like a LightningModule, its training_step calls the module itself."""

        def training_step(self, batch, batch_idx):
            return loss_of(self, batch)

    guide = (Path(__file__).parents[3] / "docs/moving.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "training_step" in block]
    names = {"nn": nn}
    exec(block, names)
    attempt("lightning", names["loss_of_training_step"], names["TrainingStep"](Module(1, 1)))


def a_compiled_model():
    """The forward of DDP may be compiled, too."""
    compiled = {}

    def loss_func(trainer, data):
        if not compiled:
            compiled["model"] = torch.compile(trainer.model, backend="eager")
        return loss_of(compiled["model"], data)

    attempt("compiled", loss_func)


def a_second_optimizer_stepped_by_hand():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator, self.critic = nn.Linear(1, 1), nn.Linear(1, 1)

        def forward(self, inputs):
            return self.critic(self.generator(inputs))

    pair = Pair()
    second = torch.optim.SGD(pair.critic.parameters(), lr=0.1)

    def loss_func(trainer, data):
        second.zero_grad()
        loss_of(pair.critic, data).backward()
        second.step()
        return trainer.model(data[0]).mean()

    first = torch.optim.SGD(pair.generator.parameters(), lr=0.1)
    attempt(
        "second optimizer",
        loss_func,
        pair,
        optimizer=first,
        checkpoints=Checkpoints(every_steps=2),
        statable={"second": second},
    )


def through_model(trainer, data):
    return loss_of(trainer.model, data)


def weights_changed_on_one_rank():
    def change(trainer):
        if trainer.rank == 1:
            with torch.no_grad():
                trainer.unwrapped_model.bias += 1e-3

    attempt("hook", through_model, hooks={"after_epoch_end": change})
    attempt("hook before the save", through_model, hooks={"before_checkpoint_persisted": change})
    trainer = make("before train", through_model)
    change(trainer)
    try:
        trainer.train()
    except RanksDifferError as error:
        FOUND["before train"] = [type(error).__name__, str(error), trainer.progress.step]


def a_parameter_of_the_loss_function():
    scale = nn.Parameter(torch.ones(1))
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD([*model.parameters(), scale], lr=0.1)
    attempt("criterion", lambda trainer, data: loss_of(trainer.model, data) * scale, model, optimizer=optimizer)


def rounding():
    def change(trainer):
        if trainer.rank == 1:
            with torch.no_grad():
                trainer.unwrapped_model.bias *= 1 + 1e-6

    attempt("rounding", through_model, hooks={"after_epoch_end": change})


def buffers_and_all_kinds_of_tensors():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.bf16 = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
            self.c64 = nn.Parameter(torch.ones(2, 3, dtype=torch.complex64))
            self.last = nn.Parameter(torch.ones(2, 3, 5, 5).to(memory_format=torch.channels_last))
            self.view = nn.Parameter(torch.ones(9)[1:8])
            self.count = nn.Parameter(torch.arange(3), requires_grad=False)
            self.empty = nn.Parameter(torch.ones(0))
            self.zero = nn.Parameter(torch.zeros(1))
            self.norm = nn.BatchNorm1d(1)
            self.register_buffer("mine", torch.zeros(1))

        def forward(self, inputs):
            self.mine.fill_(dist.get_rank())
            own = (self.bf16, self.c64, self.last, self.view, self.zero * 0, self.empty)
            return self.norm(inputs) + sum(value.abs().float().mean() for value in own[:-1]) + self.empty.sum()

    attempt("kinds", through_model, Odd())
    changes = dict.fromkeys(("bf16", "c64", "last", "view"), 3.0)
    for name, to in {**changes, "count": 3 + 2**60, "zero": 1e-9, "equal": -0.0}.items():

        def change(trainer, name=name, to=to):
            if trainer.rank == 1:
                value = getattr(trainer.unwrapped_model, "zero" if name == "equal" else name).data
                value[(-1,) * value.ndim] = to
            if name == "count" and trainer.rank == 0:
                trainer.unwrapped_model.count.data[-1] = 2**60

        attempt(f"kinds {name}", through_model, Odd(), hooks={"after_epoch_end": change}, max_epochs=1)


def body_and_head():
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    return model


def thaw(trainer, epoch):
    if epoch >= 2:
        trainer.unwrapped_model[0].requires_grad_(True)


def thaw_with_a_group(trainer, epoch):
    if epoch >= 2 and len(trainer.optimizer.param_groups) == 1:
        body = trainer.unwrapped_model[0].requires_grad_(True)
        trainer.optimizer.add_param_group({"params": list(body.parameters()), "lr": 0.05})


def parameters_that_a_hook_thaws_or_freezes():
    def run(code, hook, group=None, **options):
        torch.manual_seed(0)
        model = body_and_head()
        optimizer = torch.optim.SGD(model.parameters() if group is None else model[group].parameters(), lr=0.1)
        return attempt(code, through_model, model, optimizer=optimizer, hooks=hook, **{"max_epochs": 3} | options)

    run("thawed", {"before_epoch_start": thaw})
    run("thawed group", {"before_epoch_start": thaw_with_a_group}, 2)
    # In the middle of the epoch after: the group and what it trains come from the checkpoint.
    stop = {"after_train_iteration_end": lambda trainer: trainer.progress.step == 10 and trainer.save_and_stop()}
    run("thawed group, resumed", {"before_epoch_start": thaw_with_a_group} | stop, 2)
    run("thawed group, resumed", {}, 2)

    def freeze(trainer, epoch):
        trainer.unwrapped_model[2].requires_grad_(epoch == 1)
        trainer.unwrapped_model[0].requires_grad_(epoch > 1)

    run("frozen", {"before_epoch_start": freeze})

    def replace(trainer, epoch):
        if epoch == 2:
            trainer.unwrapped_model[2] = nn.Linear(4, 1)
            nn.init.ones_(trainer.unwrapped_model[2].weight)
            nn.init.zeros_(trainer.unwrapped_model[2].bias)
            trainer.optimizer.add_param_group({"params": list(trainer.unwrapped_model[2].parameters())})

    run("replaced", {"before_epoch_start": replace})

    def change_in_the_epoch(trainer):
        trainer.unwrapped_model[0].requires_grad_(trainer.progress.step > 1)

    run("thawed in the epoch", {"before_train_iteration_start": change_in_the_epoch})

    def freeze_the_bias(trainer):
        trainer.unwrapped_model[2].bias.requires_grad_(False)

    run("frozen in the epoch", {"after_train_iteration_end": freeze_the_bias})

    def thaw_on_one_rank(trainer):
        trainer.unwrapped_model[0].bias.requires_grad_(trainer.is_main)

    run("thawed on one rank", {"before_epoch_start": thaw_on_one_rank})


a_model_that_is_called_by_its_own_name()
only_the_last_iteration_of_a_step_must_call_it()
a_lightning_module_as_the_guide_wraps_it()
a_compiled_model()
a_second_optimizer_stepped_by_hand()
weights_changed_on_one_rank()
a_parameter_of_the_loss_function()
rounding()
buffers_and_all_kinds_of_tensors()
parameters_that_a_hook_thaws_or_freezes()
(OUT / f"rank_{dist.get_rank()}.json").write_text(json.dumps(FOUND, default=str))
