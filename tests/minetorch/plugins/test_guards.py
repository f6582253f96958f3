"""Gradients: their norm, and what is said where they are not finite."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minetorch import NotFiniteError
from minetorch.plugins import GradNorm, NaNGuard
from minetorch.plugins.nan_search import find_not_finite


def points(trainer, name):
    return [(curve, x, y) for graph, curve, x, y in trainer.drawer.curves.points() if graph == name]


@pytest.mark.parametrize("clip", [None, 0.01])
def test_the_norm_is_that_before_clipping(trained, clip):
    norms = []

    def look(optimizer, *_):
        norms.append(float(nn.utils.get_total_norm([p.grad for p in optimizer.param_groups[0]["params"]])))

    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = trained(
        model=model, optimizer=optimizer, plugins=[GradNorm(every=2)], clip_grad_norm=clip, max_epochs=1,
        hooks={"after_init": lambda trainer: optimizer.register_step_pre_hook(look)},
    )  # fmt: skip
    found = points(run.trainer, "gradient_norm")
    assert [x for curve, x, _ in found if curve == "mean"] == [2, 4, 5]
    if clip is None:
        assert run.metrics["grad_norm"] == pytest.approx(sum(norms) / 5)
        highest = [y for curve, _, y in found if curve == "highest"]
        assert highest == pytest.approx([max(norms[:2]), max(norms[2:4]), norms[4]])
    else:
        assert norms == pytest.approx([clip] * 5, rel=1e-3)
        assert run.metrics["grad_norm"] > 10 * clip


class Layered(nn.Module):
    """Whose `middle` fails in the way that it is told, at the step that it is told."""

    def __init__(self, how, at=3):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(1, 4), Failing(how, at), nn.Linear(4, 1)

    def forward(self, inputs):
        return self.last(self.middle(self.first(inputs)))


class Failing(nn.Module):
    def __init__(self, how, at):
        super().__init__()
        self.how, self.at = how, at
        self.scale = nn.Parameter(torch.ones(()))
        self.step = 0

    def forward(self, inputs):
        if self.step < self.at or not self.training:
            return inputs * self.scale
        if self.how == "output":
            return torch.log(-inputs.abs()) * self.scale
        return inputs * self.scale + torch.sqrt(inputs * 0)  # whose gradient is infinite times 0


def training(make_trainer, model, **changes):
    def count(trainer):
        model.middle.step = trainer.progress.step

    guard = NaNGuard()
    return make_trainer(model=model, plugins=[guard], hooks={"after_train_iteration_end": count}, **changes)


@pytest.mark.parametrize(
    ("how", "place"),
    [
        ("output", "the output of layer 'middle' (Failing)"),
        ("gradient", "the gradient that comes back to the output of layer 'first' (Linear)"),
    ],
)
def test_it_names_the_layer_and_keeps_the_weights(make_trainer, how, place):
    model = Layered(how)
    trainer = training(make_trainer, model)
    with pytest.raises(NotFiniteError) as raised:
        trainer.train()
    message = str(raised.value)
    assert f"it comes from {place}" in message
    assert "in epoch 1, after step 3: rank 0, iteration 3, samples " in message
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_accumulated_iterations_are_all_suspects(make_trainer):
    inputs = torch.linspace(-1, 1, 20).unsqueeze(1)
    inputs[13] = float("inf")
    data = DataLoader(TensorDataset(inputs, inputs), batch_size=2)
    trainer = make_trainer(train_dataloader=data, plugins=[NaNGuard()], accumulated_iter=5)
    with pytest.raises(NotFiniteError, match=r"iteration 6, samples 12, 13: it comes from the data of the batch"):
        trainer.train()


def test_a_loss_that_is_not_finite_though_the_gradients_are(make_trainer, tmp_path):
    def loss(trainer, data):
        value = nn.functional.mse_loss(trainer.model(data[0]), data[1])
        return value + math.nan if trainer.progress.iteration == 2 and trainer.model.training else value

    trainer = make_trainer(loss_func=loss, plugins=[NaNGuard()])
    with pytest.raises(NotFiniteError, match=r"A loss is not finite in epoch 1, after step 5.*No checkpoint was saved"):
        trainer.train()
    assert not list((tmp_path / "runs/default/models").glob("g*"))


def test_without_such_a_value_it_changes_nothing(trained, tmp_path):
    plain = trained(alchemistic_directory=tmp_path / "plain")
    guarded = trained(alchemistic_directory=tmp_path / "guarded", plugins=[NaNGuard(), GradNorm()])
    assert all(torch.equal(value, guarded.weights[name]) for name, value in plain.weights.items())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn], ids=str)
def test_values_of_every_kind_are_looked_at(dtype):
    model = nn.Module()
    model.odd = nn.Parameter(torch.ones(3).to(dtype), requires_grad=False)
    model.even = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([model.even], lr=0.1)

    def loss_of(data):
        return model.even.sum()

    assert find_not_finite(model, optimizer, torch.ones(1), loss_of) is None
    model.odd[1:2] = torch.full((1,), math.nan).to(dtype)
    assert find_not_finite(model, optimizer, torch.ones(1), loss_of) == "the model's own 'odd', before the step"
    assert find_not_finite(model, optimizer, torch.full((1,), math.nan).to(dtype), loss_of) == "the data of the batch"


def test_only_gradients_of_the_optimizer_are_named():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.outside = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def loss_of(data):
        return (model.inside.sqrt() + model.outside.sqrt()).sum()  # with infinite gradients

    model = Root()
    optimizer = torch.optim.SGD([model.inside], lr=0.1)
    assert find_not_finite(model, optimizer, torch.ones(1), loss_of) == "the gradient of 'inside'"
