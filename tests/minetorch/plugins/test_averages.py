"""The average of the weights: what it is, where it is used, and that nobody takes it for the weights."""

from contextlib import suppress

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import minetorch
from minetorch import CheckpointMismatchError, Checkpoints, ConfigurationError
from minetorch.plugins import EMA


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def test_it_is_the_average_of_weights_and_statistics_and_fits_the_model(trained, tmp_path):
    steps = []
    run = trained(
        model=net(),
        plugins=[EMA(0.9, warmup=False)],
        hooks={
            "after_init": lambda trainer: steps.append(weights_of(trainer.unwrapped_model)),
            "after_train_iteration_end": lambda trainer: steps.append(weights_of(trainer.unwrapped_model)),
        },
    )
    expected, *later = steps
    for step in later:
        for name, value in step.items():
            if value.is_floating_point():
                expected[name] = torch.lerp(expected[name], value, 1 - 0.9)
            else:
                expected[name] = value
    state = minetorch.load(tmp_path / "runs/default", "latest")
    average = state["plugins"]["EMA"]["average"]
    assert average.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(average[name], value)
    assert not torch.equal(average["0.weight"], state["state_dict"]["0.weight"])
    assert torch.equal(run.weights["0.weight"], state["state_dict"]["0.weight"])
    net().load_state_dict(average)


def test_a_high_decay_is_warmed_up_to(trained, tmp_path):
    """The first update keeps a tenth, so that the initial weights are soon gone."""
    trained(plugins=[EMA(0.999)], max_epochs=1)
    state = minetorch.load(tmp_path / "runs/default")
    average, now = state["plugins"]["EMA"]["average"]["weight"], state["state_dict"]["weight"]
    torch.manual_seed(0)
    start = nn.Linear(1, 1).weight.detach()
    assert abs((average - now).item()) < abs((average - start).item())


@pytest.mark.parametrize("validate", [True, False])
def test_validation_is_of_the_average_unless_told_otherwise(trained, tmp_path, validate):
    seen = {}

    def look(trainer):
        seen["weight"] = trainer.unwrapped_model.weight.item()

    plugins = [EMA(0.9, validate=validate)]
    trained(plugins=plugins, hooks={"after_val_iteration_end": look}, max_epochs=1)
    state = minetorch.load(tmp_path / "runs/default")
    wanted = state["plugins"]["EMA"]["average"] if validate else state["state_dict"]
    assert seen["weight"] == wanted["weight"].item()


def test_swapped_in_a_hook_and_back_again_even_after_an_error(trained):
    ema = EMA(0.9)
    found = []

    def swap(trainer):
        own = trainer.unwrapped_model.weight.item()
        with suppress(ZeroDivisionError), ema.swapped():
            found.append((own, trainer.unwrapped_model.weight.item()))
            raise ZeroDivisionError
        assert trainer.unwrapped_model.weight.item() == own

    trained(plugins=[ema], hooks={"after_epoch_end": swap}, max_epochs=1)
    assert found[0][0] != found[0][1]


def test_a_save_while_swapped_is_refused(make_trainer):
    ema = EMA(0.9)

    def save(trainer):
        with ema.swapped():
            trainer.persist("wrong")

    trainer = make_trainer(plugins=[ema], hooks={"before_epoch_start": save})
    with pytest.raises(ConfigurationError, match=r"within EMA\.swapped\(\)"):
        trainer.train()


def test_a_save_under_way_has_the_weights_and_not_the_average(trained, tmp_path):
    """A large model is copied beside the training; validation swaps its weights before the copy is made."""
    models = []
    for plugins in ([], [EMA(0.9)]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 2000), nn.Linear(2000, 1000), nn.Linear(1000, 1))
        folder = tmp_path / str(len(plugins))
        trained(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=1e-3),
            plugins=plugins,
            alchemistic_directory=folder,
            persist_stride=None,
            checkpoints=Checkpoints(every_steps=5),  # at the end of an epoch, right before its validation
        )
        models.append(folder / "default")
    plain, averaged = ([minetorch.load(run, name)["state_dict"] for name in saved(run, (5, 10))] for run in models)
    for one, other in zip(plain, averaged, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def saved(run, steps):
    """The first checkpoint of each of these steps."""
    files = sorted(path.name.removesuffix(".json") for path in (run / "models").glob("g*.json"))
    return [next(name for name in files if f"-s{step:09d}-" in name) + ".pth.tar" for step in steps]


def test_half_precision_is_averaged_in_float32(trained, tmp_path):
    model = nn.Linear(1, 1).to(torch.bfloat16)
    inputs = torch.linspace(-1, 1, 20).unsqueeze(1).to(torch.bfloat16)
    data = DataLoader(TensorDataset(inputs, inputs), batch_size=4)
    trained(model=model, train_dataloader=data, val_dataloader=data, plugins=[EMA(0.999)])
    average = minetorch.load(tmp_path / "runs/default")["plugins"]["EMA"]["average"]
    assert average["weight"].dtype == torch.float32
    assert model.weight.dtype == torch.bfloat16


def test_tied_weights_have_one_average(trained, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    model[1].weight = model[0].weight
    trained(model=model, plugins=[EMA(0.9)])
    average = minetorch.load(tmp_path / "runs/default")["plugins"]["EMA"]["average"]
    assert torch.equal(average["0.weight"], average["1.weight"])
    assert average["0.weight"].data_ptr() == average["1.weight"].data_ptr()


def test_another_models_average_is_refused(make_trainer):
    ema = EMA()
    make_trainer(resume=False, model=nn.Sequential(nn.Linear(1, 1)), plugins=[ema])
    with pytest.raises(CheckpointMismatchError, match=r"EMA does not fit this model: '0\.weight'"):
        ema.load_state_dict({"average": {"weight": torch.ones(1, 1)}, "updates": 1})


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ConfigurationError, match="decay must be from 0 to below 1"):
        EMA(decay)
