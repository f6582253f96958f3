"""An optimizer on resume: its class, its groups and parameters by name, and options that the script has changed."""

import logging

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR, SequentialLR, StepLR

import minetorch
from minetorch import CheckpointMismatchError, Checkpoints, Trainer
from minetorch.checkpoint import Checkpointer, Store
from minetorch.plugins import LRSchedule


def two_layers():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))


def sgd(groups, lr=0.1, **options):
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, **options)


@pytest.fixture
def train(parts):
    """Trains with a model and optimizer of the caller's; returns the Trainer."""

    def train(model, optimizer, **changes):
        trainer = Trainer(**parts(model=model, optimizer=optimizer, **changes))
        trainer.train()
        return trainer

    return train


def weights(trainer):
    return torch.cat([tensor.flatten() for tensor in trainer.unwrapped_model.state_dict().values()])


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize(("first", "second"), [("SGD", "Adam"), ("Adam", "SGD"), ("Adam", "RMSprop")])
def test_another_class_is_refused(train, commit_old, tmp_path, first, second, is_old):
    model = two_layers()
    train(model, getattr(torch.optim, first)(model.parameters(), lr=0.01))
    if is_old:
        commit_old(tmp_path / "runs/default")
    says = f"another optimizer than {second}" if is_old else f"the optimizer {first}, and the script has {second}"
    with pytest.raises(CheckpointMismatchError, match=f"{says}.*resume=False.*minetorch.load"):
        train(model, getattr(torch.optim, second)(model.parameters(), lr=0.01), max_epochs=3)


def thaw(trainer, epoch):
    if epoch == 2 and len(trainer.optimizer.param_groups) == 1:
        layer = trainer.unwrapped_model[0].requires_grad_(True)
        trainer.optimizer.add_param_group({"params": list(layer.parameters()), "lr": 0.03, "name": "thawed"})


@pytest.mark.parametrize("stop_at", [(2, 1), (3, 3)])
def test_a_group_that_a_hook_has_added_comes_back(train, stop_at):
    def run(code, **changes):
        model = two_layers()
        model[0].requires_grad_(False)
        hooks = {"before_epoch_start": thaw} | changes.pop("hooks", {})
        return train(model, sgd(model[2].parameters()), code=code, max_epochs=4, hooks=hooks, **changes)

    def stop(trainer, index):
        if (trainer.current_epoch, index) == stop_at:
            trainer.save_and_stop()

    whole = run("whole")
    run("parts", hooks={"after_train_iteration_end": stop})
    resumed = run("parts")
    assert resumed.optimizer.param_groups[1]["name"] == "thawed"
    assert torch.equal(weights(resumed), weights(whole))


def one_group(model):
    return [{"params": list(model.parameters())}]


def reversed_parameters(model):
    return [{"params": list(model.parameters())[::-1]}]


def by_layer(model):
    return [
        {"params": list(model[0].parameters()), "lr": 0.1},
        {"params": list(model[2].parameters()), "lr": 0.02, "weight_decay": 0.1},
    ]


def reversed_groups(model):
    return by_layer(model)[::-1]


def named(model):
    return [{**group, "params": [*pairs]} for group, pairs in zip(by_layer(model), layers(model), strict=True)]


def layers(model):
    return [[(f"{index}.{name}", tensor) for name, tensor in model[index].named_parameters()] for index in (0, 2)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (one_group, one_group),
        (one_group, reversed_parameters),
        (by_layer, reversed_groups),
        (by_layer, named),
        (named, by_layer),
        (named, lambda model: named(model)[::-1]),
    ],
)
def test_groups_and_parameters_are_matched_by_name(train, before, after):
    whole, first, second = two_layers(), two_layers(), two_layers()
    train(whole, sgd(before(whole)), code="whole", max_epochs=4)
    train(first, sgd(before(first)), code="parts", max_epochs=2)
    resumed = train(second, sgd(after(second)), code="parts", max_epochs=4)
    assert torch.equal(weights(resumed), torch.cat([tensor.flatten() for tensor in whole.state_dict().values()]))


def test_other_parameters_are_refused_by_name(train):
    model = two_layers()
    train(model, sgd(model[2].parameters()))
    other = two_layers()
    message = r"checkpoint: \(2.weight, 2.bias\); only in the script: \(0.weight, 0.bias, 2.weight, 2.bias\)"
    with pytest.raises(CheckpointMismatchError, match=message):
        train(other, sgd(other.parameters()))


def test_parameters_outside_of_the_model(train):
    def run(code, epochs):
        model, scale = two_layers(), nn.Parameter(torch.ones(1))
        trainer = train(
            model,
            sgd([*model.parameters(), scale]),
            code=code,
            max_epochs=epochs,
            loss_func=lambda trainer, data: (scale * trainer.model(data[0]) - data[1]).pow(2).mean(),
        )
        return trainer.optimizer.state[scale]["momentum_buffer"]

    run("a", 2)
    assert run("a", 2).shape == (1,)


class OwnLayout(torch.optim.SGD):
    """An optimizer whose state has a layout of its own."""

    def state_dict(self):
        return {"mine": super().state_dict()}

    def load_state_dict(self, state):
        super().load_state_dict(state["mine"])


def test_an_optimizer_with_a_state_of_its_own_layout(train):
    whole, first, second = two_layers(), two_layers(), two_layers()
    train(whole, OwnLayout(whole.parameters(), 0.1, 0.9), code="whole", max_epochs=4)
    train(first, OwnLayout(first.parameters(), 0.1, 0.9), code="parts")
    resumed = train(second, OwnLayout(second.parameters(), 0.1, 0.9), code="parts", max_epochs=4)
    assert all(torch.equal(*pair) for pair in zip(whole.parameters(), second.parameters(), strict=True))
    assert resumed.progress.epoch == 4


def test_an_old_checkpoint_continues_by_place(train, commit_old, tmp_path):
    whole, first, second = two_layers(), two_layers(), two_layers()
    train(whole, torch.optim.AdamW(by_layer(whole)), code="whole", max_epochs=4)
    train(first, torch.optim.AdamW(by_layer(first)), code="parts")
    commit_old(tmp_path / "runs/parts")
    train(second, torch.optim.AdamW(by_layer(second)), code="parts", max_epochs=4)
    assert all(torch.equal(*pair) for pair in zip(whole.parameters(), second.parameters(), strict=True))


def test_torch_loads_the_optimizers_state_as_ever(train, tmp_path):
    model = two_layers()
    trainer = train(model, sgd(by_layer(model)))
    other = sgd(by_layer(two_layers()))
    other.load_state_dict(minetorch.load(tmp_path / "runs/default", "latest")["optimizer"])
    assert [group.keys() for group in other.param_groups] == [g.keys() for g in trainer.optimizer.param_groups]
    assert len(other.state) == 4


def settings(run):
    """What the newest manifest says of the run's configuration."""
    return Checkpointer(Store.open(run / "models"), logger=logging.getLogger("test")).list()[-1].settings


class TestOptions:
    """Options that the script gives with other values than the run was given."""

    @pytest.mark.parametrize("is_old", [False, True])
    def test_the_checkpoints_stay_and_the_log_and_the_manifest_say_so(self, train, commit_old, tmp_path, is_old, capfd):
        model = two_layers()
        train(model, sgd(model.parameters(), lr=0.01))
        if is_old:
            commit_old(tmp_path / "runs/default")
        for epochs in (3, 4):  # also where the last start had the same change
            capfd.readouterr()
            trainer = train(model, sgd(model.parameters(), lr=0.5, weight_decay=0.1), max_epochs=epochs)
            said = capfd.readouterr().err
            assert "not with those of the script: lr 0.01 instead of 0.5, weight_decay 0 instead of 0.1. To use" in said
            assert trainer.optimizer.param_groups[0]["lr"] == 0.01
            assert settings(tmp_path / "runs/default")["optimizer.lr"] == 0.01
            assert settings(tmp_path / "runs/default")["optimizer.weight_decay"] == 0

    def test_the_scripts_are_used_if_asked_for_and_recorded(self, train, tmp_path, capfd):
        model = two_layers()
        train(model, sgd(by_layer(model), lr=0.01))
        changed = by_layer(model)[::-1]
        changed[0] |= {"lr": 0.5, "weight_decay": 0.2}
        trainer = train(model, sgd(changed), max_epochs=3, checkpoints=Checkpoints(optimizer_options="script"))
        assert [(group["lr"], group["weight_decay"]) for group in trainer.optimizer.param_groups] == [
            (0.1, 0),
            (0.5, 0.2),
        ]
        assert "options of the script: lr of group 1 0.5 instead of 0.02, weight_decay of group 1 0.2" in (
            capfd.readouterr().err
        )
        assert settings(tmp_path / "runs/default")["optimizer.lr"] == 0.1

    def test_nothing_is_said_where_a_hook_or_scheduler_has_changed_them(self, train, capfd):
        def halve(trainer):
            trainer.optimizer.param_groups[0]["lr"] /= 2

        model = two_layers()
        for epochs in (1, 2, 3):
            optimizer = sgd(model.parameters(), lr=0.08)
            trainer = train(
                model,
                optimizer,
                max_epochs=epochs,
                hooks={"after_epoch_end": halve},
                checkpoints=Checkpoints(optimizer_options="script"),
                plugins=[LRSchedule(OneCycleLR(optimizer, max_lr=0.08, total_steps=100), per="step")],
            )
        assert trainer.optimizer.param_groups[0]["lr"] < 0.08
        assert "script" not in capfd.readouterr().err

    def test_a_decay_by_a_hook_is_kept_and_not_undone_by_the_next_start(self, train):
        def halve(trainer):
            trainer.optimizer.param_groups[0]["lr"] /= 2

        model, rates = two_layers(), []
        for epochs, lr in ((1, 0.08), (2, 0.8), (3, 0.8)):
            trainer = train(
                model,
                sgd(model.parameters(), lr=lr),
                max_epochs=epochs,
                hooks={"after_epoch_end": halve},
                checkpoints=Checkpoints(optimizer_options="script"),
            )
            rates.append(trainer.optimizer.param_groups[0]["lr"])
        assert rates == pytest.approx([0.04, 0.2, 0.1])

    @pytest.mark.parametrize(
        ("place", "schedule"),
        [
            ("plugin", lambda optimizer: LambdaLR(optimizer, lambda n: 1 / (n + 2))),
            ("plugin per step", lambda optimizer: LambdaLR(optimizer, lambda n: 1 / (n + 2))),
            ("statable", lambda optimizer: LambdaLR(optimizer, lambda n: 1 / (n + 2))),
            ("statable", lambda optimizer: StepLR(optimizer, 2, 0.5)),
            ("plugin per step", lambda optimizer: CosineAnnealingLR(optimizer, 40)),
            (
                "plugin",
                lambda optimizer: SequentialLR(
                    optimizer,
                    [LinearLR(optimizer, 0.1, total_iters=3), LambdaLR(optimizer, lambda n: 0.9**n)],
                    milestones=[3],
                ),
            ),
        ],
        ids=["lambda", "lambda per step", "lambda in statable", "step in statable", "cosine per step", "sequential"],
    )
    def test_a_scheduler_continues_from_the_scripts_rate(self, train, place, schedule):
        def run(epochs, lr, code, **changes):
            model = two_layers()
            optimizer = sgd(model.parameters(), lr=lr)
            scheduler, rates = schedule(optimizer), []
            if place == "statable":
                changes["statable"] = {"schedule": scheduler}
                changes["hooks"] = {"after_epoch_end": lambda trainer: scheduler.step()}
            else:
                changes["plugins"] = [LRSchedule(scheduler, per="step" if "step" in place else "epoch")]
            changes.setdefault("hooks", {})["after_train_iteration_end"] = lambda trainer: rates.append(
                trainer.optimizer.param_groups[0]["lr"]
            )
            train(model, optimizer, max_epochs=epochs, code=code, **changes)
            return rates

        run(3, 0.01, "changed")
        resumed = [
            rate
            for epochs in (4, 6)
            for rate in run(epochs, 0.05, "changed", checkpoints=Checkpoints(optimizer_options="script"))
        ]
        assert resumed == pytest.approx(run(6, 0.05, "whole")[-len(resumed) :])

    def test_a_rate_in_a_tensor_keeps_its_kind(self, train):
        model = two_layers()
        train(model, torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.05))
        train(model, optimizer, max_epochs=3, checkpoints=Checkpoints(optimizer_options="script"))
        rate = optimizer.param_groups[0]["lr"]
        assert isinstance(rate, torch.Tensor)
        assert rate.item() == pytest.approx(0.05)

    def test_it_is_one_of_two(self, make_trainer):
        with pytest.raises(minetorch.ConfigurationError, match="optimizer_options must be 'checkpoint' or 'script'"):
            make_trainer(checkpoints=Checkpoints(optimizer_options="mine"))
