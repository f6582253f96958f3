"""A loss that is not finite is told of once, and never fetched for it."""

import math

import pytest
import torch
from torch import nn

from minetorch import Checkpoints
from minetorch.training.loss_watch import LossWatch


def loss_that_becomes(value, *, at, validating=False):
    """A loss function that multiplies by `value` from a step on, in training or in validation."""

    def loss(trainer, data):
        own = nn.functional.mse_loss(trainer.model(data[0]), data[1])
        struck = trainer.progress.step >= at and trainer.model.training is not validating
        return own * value if struck else own

    return loss


def warnings_in(tmp_path):
    lines = (tmp_path / "runs/default/log.txt").read_text().splitlines()
    return [line.partition("WARNING ")[2].partition(" ")[2].partition(" ")[2] for line in lines if "loss is" in line]


@pytest.mark.parametrize(("value", "said"), [(math.nan, "NaN"), (math.inf, "NaN|infinite"), (1.0, None)])
def test_a_training_loss_that_is_not_finite_is_one_warning_that_names_the_step(trained, tmp_path, value, said):
    trained(loss_func=loss_that_becomes(value, at=7), max_epochs=4)
    found = warnings_in(tmp_path)
    if said is None:
        assert found == []
        return
    (line,) = found
    assert line.startswith(
        tuple(f"The training loss is {word}: seen at step 10, in epoch 2." for word in said.split("|"))
    )
    assert "NaNGuard()" in line


def test_a_checkpoint_within_the_epoch_sees_it_sooner(trained, tmp_path):
    trained(loss_func=loss_that_becomes(math.nan, at=6), checkpoints=Checkpoints(every_steps=2))
    (line,) = warnings_in(tmp_path)
    assert line.startswith("The training loss is NaN: seen at step 8, in epoch 2.")


def test_a_validation_loss_alone_is_told_of_and_a_later_training_loss_too(trained, tmp_path):
    def loss(trainer, data):
        first = loss_that_becomes(math.inf, at=1, validating=True)
        second = loss_that_becomes(math.nan, at=11)
        return (first if not trainer.model.training else second)(trainer, data)

    trained(loss_func=loss, max_epochs=4)
    first, second = warnings_in(tmp_path)
    assert first.startswith("The validation loss is infinite: seen at step 5, in epoch 1.")
    assert second.startswith("The training loss is NaN: seen at step 15, in epoch 3.")


def test_the_bar_tells_of_the_loss_that_it_shows(trained, tmp_path, capsys):
    trained(loss_func=loss_that_becomes(math.nan, at=0), max_epochs=1, in_notebook=True)
    (line,) = warnings_in(tmp_path)
    assert line.startswith("The training loss is NaN: seen at step 1, in epoch 1.")


def test_no_loss_is_fetched_for_it(trained, monkeypatch):
    looks, fetched = [], []
    look, item = LossWatch.look, torch.Tensor.item

    def counted(self, loss, **place):
        looks.append(place)
        look(self, loss, **place)

    def counted_item(self):
        fetched.append(self)
        return item(self)

    monkeypatch.setattr(LossWatch, "look", counted)
    monkeypatch.setattr(torch.Tensor, "item", counted_item)
    trained(max_epochs=3, val_dataloader=None)
    # Once for the epoch's mean, and once for its checkpoint.
    assert len(looks) == 6
    assert len(fetched) < 15
