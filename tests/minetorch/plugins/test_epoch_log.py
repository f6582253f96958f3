"""The line of an epoch, by a clock of the test's own."""

import logging
import re
from types import SimpleNamespace

import pytest

from minetorch.checkpoint import Store
from minetorch.log import RunLog
from minetorch.plugins.epoch_log import EpochLog

CONSOLE_COLUMNS = 110


class Run:
    """A run of one epoch: it trains for 2 s on 400 samples, and validates for 1 s."""

    def __init__(self, folder, capsys):
        self.capsys = capsys
        self.folder = folder
        self.log = RunLog(Store.open(folder))
        self.now = 0.0
        self.trainer = SimpleNamespace(
            progress=SimpleNamespace(samples=100),
            max_epochs=None,
            metrics={"train_loss": 0.5},
            logger=self.log.logger,
            settings=SimpleNamespace(checkpoints=SimpleNamespace(monitor="val_loss")),
            world=SimpleNamespace(size=1, local_size=1),
        )

    def lines(self, *, epoch=7, is_best=False, seconds=2.0, validates=True):
        """The line in the file and the one on the console, without their dates and times."""
        plugin = EpochLog(lambda metrics: is_best, clock=lambda: self.now)
        plugin.before_epoch_start(self.trainer)
        self.trainer.progress.samples += 400
        self.now += seconds
        if validates:
            plugin.before_val_iteration_start(self.trainer, 0)
            self.now += 1.0
            plugin.before_val_iteration_start(self.trainer, 1)
        plugin.after_epoch_end(self.trainer, epoch)
        self.log.close()
        shown = self.capsys.readouterr().err.rstrip("\n")
        assert len("[0] " + shown) <= CONSOLE_COLUMNS
        assert re.match(r"\d\d:\d\d:\d\d Epoch", shown)
        return (self.folder / "log.txt").read_text().rstrip("\n").split(" ", 3)[3], shown[9:]


@pytest.fixture
def run(tmp_path, capsys):
    return Run(tmp_path, capsys)


def test_the_rate_is_that_of_training_alone(run):
    in_file, shown = run.lines()
    assert in_file == "Epoch 7: train_loss 0.5 (3.0 s, 200 samples/s)"
    assert shown == "Epoch 7: train_loss 0.5000 (3.0 s, 200 samples/s)"


def test_without_validation_the_epoch_is_training(run):
    run.trainer.max_epochs = 9
    assert run.lines(epoch=1, seconds=800.0, validates=False)[1] == (
        "Epoch 1/9: train_loss 0.5000 (13:20, 0.5 samples/s)"
    )


def test_the_best_epoch_is_marked(run):
    assert [line[-5:] for line in run.lines(is_best=True)] == [" best", " best"]


def test_the_console_has_four_digits_and_the_file_six(run):
    run.trainer.metrics = {"train_loss": 1.6242512, "val_loss": 12345.678, "correct": 1797, "lr": 3.33333e-5}
    in_file, shown = run.lines()
    assert in_file.startswith("Epoch 7: train_loss 1.62425, val_loss 12345.7, correct 1797, lr 3.33333e-05 (")
    assert shown.startswith("Epoch 7: train_loss 1.624, val_loss 1.235e+04, correct 1797, lr 3.333e-05 (")


def test_the_rate_that_throughput_has_measured_stands_in_place_of_the_other(run):
    run.trainer.metrics["samples_per_s"] = 633.348
    assert run.lines()[0] == "Epoch 7: train_loss 0.5 (3.0 s, 633 samples/s)"


def test_the_rate_makes_room_for_metrics(run):
    run.trainer.metrics = {"train_loss": 1.62425, "val_loss": 1.60401, "accuracy": 0.5, "macro_f1": 0.499239}
    run.trainer.max_epochs = 100
    assert run.lines(epoch=30, is_best=True)[1] == (
        "Epoch 30/100: train_loss 1.624, val_loss 1.604, accuracy 0.5000, macro_f1 0.4992 (3.0 s) best"
    )


def test_metrics_that_do_not_fit_are_counted_and_the_monitored_one_stays(run):
    run.trainer.metrics = {"train_loss": 1.0, **{f"f1_of_class_{number}": 0.5 for number in range(20)}, "acc": 0.25}
    run.trainer.settings.checkpoints.monitor = "acc"
    in_file, shown = run.lines()
    assert in_file.count("f1_of_class_") == 20
    assert shown == ("Epoch 7: train_loss 1.000, acc 0.2500, f1_of_class_0 0.5000, 19 more (3.0 s, 200 samples/s)")


def test_on_several_nodes_the_nodes_name_is_reckoned_with(run, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "a-node-with-a-long-name-017.cluster.example")
    run.trainer.world.size = 2
    run.trainer.metrics = {f"metric_{number}": 0.5 for number in range(9)}
    shown = run.lines()[1]
    assert len(f"[a-node-with-a-long-name-017:0] 12:34:56 {shown}") <= CONSOLE_COLUMNS
    assert "more (3.0 s)" in shown


def test_a_figure_that_is_no_number_is_shown(run):
    run.trainer.metrics = {"train_loss": float("nan"), "val_loss": float("inf")}
    assert run.lines()[1] == "Epoch 7: train_loss nan, val_loss inf (3.0 s, 200 samples/s)"


@pytest.fixture(autouse=True)
def level():
    """Another test may have left another."""
    logger = logging.getLogger("minetorch")
    before = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(before)
