"""Names in a checkpoint, where torch has wrapped the model or a part of it."""

import pytest
import torch
from torch import nn

import minetorch
from minetorch import NotFiniteError, Trainer
from minetorch.plugins import EMA, NaNGuard


def plain():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def compiled():
    return torch.compile(plain(), backend="eager")


def partly_compiled():
    model = plain()
    model[1] = torch.compile(model[1], backend="eager")
    return torch.compile(model, backend="eager")


def parallel():
    return nn.DataParallel(compiled())


KINDS = [plain, compiled, partly_compiled, parallel]


@pytest.fixture
def eager():
    """Has what is compiled run as it is: the tests of names need the wrappers alone."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def train(parts, eager):
    """Trains a model of this kind with an average of its weights and a second model, and returns the Trainer."""

    def train(kind, code="default", **changes):
        teacher = kind()
        trainer = Trainer(
            **parts(model=kind(), code=code, plugins=[EMA(0.5)], statable={"teacher": teacher}, **changes),
        )
        trainer.train()
        return trainer

    return train


def states(run):
    state = minetorch.load(run, "latest")
    return state["state_dict"], state["plugins"]["EMA"]["average"], state["statable"]["teacher"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_fits_the_plain_model(train, tmp_path, kind, command):
    train(kind)
    run = tmp_path / "runs/default"
    for state in states(run):
        plain().load_state_dict(state)
    command("export", run, "latest", tmp_path / "weights.pth")
    plain().load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))


def test_a_run_continues_with_other_wrappers(train, tmp_path):
    kinds = [*KINDS, plain]
    for epochs, kind in enumerate(kinds, 1):
        train(kind, "parts", max_epochs=epochs)
    train(plain, "whole", max_epochs=len(kinds))
    for parts, whole in zip(states(tmp_path / "runs/parts"), states(tmp_path / "runs/whole"), strict=True):
        assert parts.keys() == whole.keys()
        assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_an_old_checkpoint_has_the_wrappers_names(train, tmp_path, commit_old, command):
    weights = train(compiled).unwrapped_model.state_dict()
    run = tmp_path / "runs/default"
    plugins = minetorch.load(run, "latest")["plugins"]
    average = plugins["EMA"]["average"]
    plugins["EMA"]["average"] = {f"_orig_mod.{name}": value for name, value in average.items()}
    commit_old(run, state_dict=weights, plugins=plugins)
    for state in states(run)[:2]:
        plain().load_state_dict(state)
    command("export", run, "latest", tmp_path / "weights.pth")
    plain().load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    for kind in (plain, compiled, partly_compiled):
        resumed = train(kind)
        assert all(map(torch.equal, resumed.unwrapped_model.state_dict().values(), weights.values()))


class Holder(nn.Module):
    """A model of the user's whose modules are called as the wrappers of torch call theirs."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(1, 1)
        self._orig_mod = nn.Linear(1, 1)

    def forward(self, inputs):
        return self.module(inputs) + self._orig_mod(inputs)


@pytest.mark.parametrize("wrap", [nn.Sequential, nn.DataParallel, lambda m: nn.DataParallel(nn.Sequential(m))])
def test_modules_of_the_users_keep_their_names(trained, make_trainer, tmp_path, wrap):
    before = trained(model=wrap(Holder())).weights
    saved = minetorch.load(tmp_path / "runs/default", "latest")["state_dict"]
    assert {name.removeprefix("0.") for name in saved} == set(Holder().state_dict())
    after = make_trainer(model=wrap(Holder())).unwrapped_model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


class Logarithm(nn.Module):
    def forward(self, inputs):
        return torch.log(inputs - 1e3)


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: torch.compile(model, backend="eager")])
def test_nan_guard_names_the_layer_of_a_compiled_model(make_trainer, wrap):
    model = wrap(nn.Sequential(nn.Linear(1, 1), Logarithm(), nn.Linear(1, 1)))
    with pytest.raises(NotFiniteError, match=r"the output of layer '1' \(Logarithm\)"):
        make_trainer(model=model, plugins=[NaNGuard()]).train()
