"""Learning rates, early stops and the best by several metrics, in real runs that are stopped and resumed."""

import json

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import minetorch
from minetorch import Checkpoints, ConfigurationError
from minetorch.plugins import BestK, EarlyStopping, LRSchedule


def scheduled(make, **changes):
    """Arguments for a run with a scheduler of its own."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    per = changes.pop("per", "epoch")
    plugin = LRSchedule(make(optimizer), per=per, draw_every=1)
    rates = []
    hooks = {"before_train_iteration_start": lambda trainer: rates.append(trainer.optimizer.param_groups[0]["lr"])}
    return rates, {"model": model, "optimizer": optimizer, "plugins": [plugin], "hooks": hooks} | changes


def expected(make, count):
    """The rates that torch's own loop has."""
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1, momentum=0.9)
    scheduler = make(optimizer)
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def one_cycle(optimizer):
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=30)


def halving(optimizer):
    return lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)


def test_by_steps_also_over_a_stop_in_an_epoch(trained):
    def stop(trainer):
        if trainer.progress.step == 8:
            trainer.save_and_stop()

    first, arguments = scheduled(one_cycle, per="step", max_epochs=4)
    arguments["hooks"]["after_train_iteration_end"] = stop
    trained(**arguments)
    second, arguments = scheduled(one_cycle, per="step", max_epochs=4)
    run = trained(**arguments)
    assert first + second == expected(one_cycle, 20)
    drawn = [(x, y) for graph, _, x, y in run.trainer.drawer.curves.points() if graph == "learning_rate"]
    assert drawn == [(step, rate) for step, rate in enumerate(first + second, 1)]


def test_by_epochs_also_over_a_stop(trained):
    first, arguments = scheduled(halving, max_epochs=2)
    trained(**arguments)
    second, arguments = scheduled(halving, max_epochs=4)
    trained(**arguments)
    assert first + second == [rate for rate in expected(halving, 4) for _ in range(5)]


def test_accumulated_iterations_are_one_step(trained):
    rates, arguments = scheduled(halving, per="step", accumulated_iter=5, max_epochs=3)
    trained(**arguments)
    assert rates[::5] == expected(halving, 3)


def test_a_plateau_follows_its_metric(trained):
    def plateau(optimizer):
        return lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)

    torch.manual_seed(0)
    rates, arguments = scheduled(plateau, max_epochs=3)
    arguments["plugins"][0].monitor = "constant"
    hooks = arguments["hooks"] | {"after_epoch_end": lambda trainer: None}
    arguments["plugins"].insert(0, Constant())
    trained(**arguments | {"hooks": hooks})
    assert rates[::5] == [0.1, 0.1, 0.05]


class Constant:
    """A metric that never gets better; and one that goes up and down."""

    def after_epoch_end(self, trainer):
        trainer.metrics["constant"] = 1.0
        trainer.metrics["score"] = [3.0, 9.0, 5.0, 7.0, 1.0, 8.0][trainer.current_epoch - 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LRSchedule(None), "takes a scheduler"),
        (lambda: LRSchedule(halving(torch.optim.SGD([torch.ones(1)])), per="batch"), "'epoch' or 'step'"),
        (
            lambda: LRSchedule(lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([torch.ones(1)])), per="step"),
            "once an epoch",
        ),
        (lambda: EarlyStopping(mode="up"), "mode must be 'min' or 'max'"),
        (lambda: EarlyStopping(patience=0), "patience must be a whole number from 1"),
        (lambda: EarlyStopping(min_delta=-1), "min_delta"),
        (lambda: BestK("latest/no"), "cannot be named"),
        (lambda: BestK("accuracy", k=0), "k must be"),
    ],
)
def test_a_wrong_argument_says_what_is_allowed(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_another_optimizers_scheduler_is_refused(make_trainer):
    other = torch.optim.SGD([torch.ones(1)], lr=0.1)
    with pytest.raises(ConfigurationError, match="another optimizer"):
        make_trainer(plugins=[LRSchedule(halving(other))])


def test_it_stops_when_nothing_gets_better_and_stays_stopped(trained):
    def run(**changes):
        stopping = EarlyStopping("constant", patience=2)
        return trained(plugins=[Constant(), stopping], max_epochs=6, **changes).progress.epoch, stopping

    epoch, stopping = run()
    assert (epoch, stopping.best, stopping.best_epoch, stopping.waited) == (3, 1.0, 1, 2)
    assert run()[0] == 3


def test_a_stop_between_counts_goes_on_counting(trained):
    def run(max_epochs, patience=3):
        stopping = EarlyStopping("constant", patience=patience)
        return trained(plugins=[Constant(), stopping], max_epochs=max_epochs).progress.epoch

    assert run(2) == 2
    assert run(6) == 4
    assert run(6, patience=4) == 5  # raised, it goes on


def test_a_gain_below_min_delta_is_none(trained):
    stopping = EarlyStopping("score", mode="max", min_delta=7.0, patience=3)
    assert trained(plugins=[Constant(), stopping], max_epochs=6).progress.epoch == 4
    assert stopping.best == 3.0


def test_epochs_without_validation_do_not_count(trained):
    stopping = EarlyStopping("val_loss", patience=1)
    trained(plugins=[stopping], eval_stride=3, max_epochs=3)
    assert stopping.best_epoch == 3
    assert stopping.waited == 0


def test_a_metric_that_is_not_there_is_an_error(make_trainer):
    trainer = make_trainer(plugins=[EarlyStopping("acuracy")])
    with pytest.raises(ConfigurationError, match="'acuracy', which is not among this epoch's metrics: 'train_loss'"):
        trainer.train()


def test_the_best_of_a_metric_of_its_own_outlive_the_newest(trained, tmp_path):
    for last in (3, 6):  # stopped and resumed in between
        trained(
            plugins=[Constant(), BestK("score", mode="max", k=2)], checkpoints=Checkpoints(keep_last=1), max_epochs=last
        )
    run = tmp_path / "runs/default"
    assert minetorch.load(run, "best_score")["epoch"] == 2
    assert {minetorch.load(run, f"best_score_{slot}")["epoch"] for slot in (1, 2)} == {2, 6}
    kept = {json.loads(path.read_text())["epoch"] for path in (run / "models").glob("g*.json")}
    assert {2, 6} <= kept < set(range(1, 7))


def test_the_best_is_saved_whatever_the_stride_and_once(trained, tmp_path):
    trained(plugins=[Constant(), BestK("score", mode="max")], persist_stride=None, val_dataloader=None, max_epochs=6)
    steps = [json.loads(path.read_text())["epoch"] for path in (tmp_path / "runs/default/models").glob("g*.json")]
    assert sorted(steps) == [1, 2, 6]
