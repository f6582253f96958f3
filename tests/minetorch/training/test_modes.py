"""Train and eval mode: which the Trainer sets, and which it leaves as the user has set them."""

import pytest
import torch
from torch import nn


class Net(nn.Module):
    """A body with BatchNorm and dropout, and a head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, 1)

    def forward(self, inputs):
        return self.head(self.body(inputs))


def modes(model):
    return {name: module.training for name, module in model.named_modules()}


@pytest.fixture
def seen(trained):
    """Trains, and returns the modes that hooks at each point have seen; the run is `seen.run`."""

    def train(model, hooks=None, **options):
        found = {}

        def look(point):
            return lambda trainer: found.setdefault(point, []).append(modes(model))

        points = (
            "before_epoch_start", "before_train_iteration_start", "after_train_iteration_end",
            "before_val_iteration_start", "after_epoch_end", "before_quit",
        )  # fmt: skip
        own = hooks or {}
        train.run = trained(
            model=model, hooks={point: [*own.get(point, []), look(point)] for point in points}, **options
        )
        return found

    return train


def test_a_frozen_part_in_eval_mode_stays_in_it(seen):
    model = Net()
    model.body.requires_grad_(False).eval()
    statistics = model.body[1].running_mean.clone()
    before = modes(model)
    found = seen(model)
    assert all(mode == before for mode in found["after_train_iteration_end"])
    assert torch.equal(model.body[1].running_mean, statistics)
    assert modes(model) == before


@pytest.mark.parametrize("point", ["before_epoch_start", "before_train_iteration_start"])
def test_a_mode_that_a_hook_sets_holds_for_the_following_epochs(seen, point):
    def freeze(trainer):
        if trainer.current_epoch == 2:
            trainer.model.body.eval()

    model = Net()
    found = seen(model, hooks={point: [freeze]}, max_epochs=3)
    body = [mode["body.2"] for mode in found["after_train_iteration_end"]]
    assert body == [True] * 5 + [False] * 10
    assert modes(model) == {name: not name.startswith("body") for name in modes(model)}


def test_a_part_can_be_put_back_into_train_mode(seen):
    def thaw(trainer):
        trainer.model.body.train(trainer.current_epoch >= 2)

    found = seen(Net(), hooks={"before_epoch_start": [thaw]})
    assert [mode["body.1"] for mode in found["after_train_iteration_end"]] == [False] * 5 + [True] * 5


def test_a_model_that_freezes_a_part_in_its_own_train_is_asked(seen):
    class Frozen(Net):
        def train(self, mode=True):
            super().train(mode)
            self.body[1].eval()
            return self

    found = seen(Frozen())
    assert {mode["body.1"] for mode in found["after_train_iteration_end"]} == {False}
    assert {mode["body.2"] for mode in found["after_train_iteration_end"]} == {True}


def test_a_module_of_two_parents_keeps_its_mode(seen):
    model = Net()
    model.again = nn.Sequential(model.body[2])
    model.again.eval()
    model.body[2].train()
    before = modes(model)
    found = seen(model)
    assert all(mode == before for mode in found["after_train_iteration_end"])


@pytest.mark.parametrize("eval_stride", [1, 2])
def test_hooks_after_the_training_of_an_epoch_see_the_model_in_eval_mode(seen, eval_stride):
    found = seen(Net(), eval_stride=eval_stride, max_epochs=3)
    for point in ("before_val_iteration_start", "after_epoch_end", "before_quit"):
        assert found[point]
        assert not any(any(mode.values()) for mode in found[point]), point
    assert all(all(mode.values()) for mode in found["before_epoch_start"])


def test_a_hook_that_looks_at_the_validation_data_leaves_no_trace_where_there_is_no_validation(seen):
    def predict(trainer):
        with torch.no_grad():
            outputs.append([trainer.model(inputs) for inputs, _ in trainer.val_dataloader])

    outputs = []
    looking, plain = Net(), Net()
    plain.load_state_dict(looking.state_dict())
    seen(looking, hooks={"after_epoch_end": [predict, predict]}, eval_stride=5, code="looking")
    weights = seen.run.weights
    assert all(torch.equal(one, other) for one, other in zip(outputs[0], outputs[1], strict=True))
    seen(plain, eval_stride=5, code="plain")
    assert all(torch.equal(value, seen.run.weights[name]) for name, value in weights.items())


def test_a_model_that_comes_in_eval_mode_is_trained_and_given_back_as_it_came(seen, tmp_path):
    model = Net().eval()
    found = seen(model)
    assert all(all(mode.values()) for mode in found["after_train_iteration_end"])
    assert not any(modes(model).values())
    log = (tmp_path / "runs/default/log.txt").read_text()
    assert "The whole model is in eval mode, so the Trainer puts it into train mode." in log


def test_the_log_names_the_parts_that_stay_in_eval_mode(trained, tmp_path):
    model = Net()
    model.body.eval()
    trained(model=model)
    log = (tmp_path / "runs/default/log.txt").read_text()
    assert "These modules are in eval mode and stay in it during training: body.\n" in log


def test_a_failing_run_gives_the_model_back_in_its_modes(make_trainer):
    def fail(trainer):
        raise KeyError("in validation")

    model = Net()
    model.body[1].eval()
    before = modes(model)
    with pytest.raises(KeyError):
        make_trainer(model=model, hooks={"before_val_iteration_start": fail}).train()
    assert modes(model) == before


def test_a_second_train_continues_in_the_same_modes(make_trainer):
    model = Net()
    model.body.eval()
    before = modes(model)
    make_trainer(model=model, max_epochs=1).train()
    make_trainer(model=model, max_epochs=2).train()
    assert modes(model) == before
