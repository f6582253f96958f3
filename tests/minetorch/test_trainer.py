"""The loop on one worker: its order of events, its options, and that it goes on where it stopped."""

import copy
import importlib
import json
import logging
import math
import multiprocessing
import re
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import minetorch
from minetorch import (
    HOOK_POINTS,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    Checkpoints,
    ConfigurationError,
    StorageError,
    Trainer,
)
from minetorch.checkpoint import Checkpointer


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def line(length):
    inputs = torch.linspace(-1, 1, length).unsqueeze(1)
    return inputs, 2 * inputs + 1


def counter():
    """Hooks for every point, and what they were called with."""
    calls = []

    def record(point):
        def hook(trainer, **payload):
            calls.append((point, payload))

        return hook

    return {point: record(point) for point in HOOK_POINTS}, calls


def test_the_order_of_events(trained):
    hooks, calls = counter()
    trained(hooks=hooks, max_epochs=2, eval_stride=2)
    train = ["before_train_iteration_start", "after_train_iteration_end"] * 5
    val = ["before_val_iteration_start", "after_val_iteration_end"] * 2
    first = ["before_epoch_start", *train, "after_epoch_end", "before_checkpoint_persisted"]
    second = ["before_epoch_start", *train, *val, "after_epoch_end", "before_checkpoint_persisted"]
    points = [point for point, _ in calls]
    durable = [place for place, point in enumerate(points) if point == "after_checkpoint_persisted"]
    assert [point for point in points if point != "after_checkpoint_persisted"] == [
        "after_init", *first, *second, "before_quit"
    ]  # fmt: skip
    # Saved beside the training: told after a step, after an epoch, or before the end.
    assert len(durable) == 2
    before_end = [place for place in durable if place < points.index("before_quit") - 1]
    told_after = {points[place - 1] for place in before_end} - {"after_checkpoint_persisted"}
    assert told_after <= {"after_train_iteration_end", "after_epoch_end", "before_checkpoint_persisted"}


def test_each_point_has_the_payload_it_promises(trained):
    hooks, calls = counter()
    trained(hooks=hooks)
    assert {point: set(payload) for point, payload in calls} == {p: set(names) for p, names in HOOK_POINTS.items()}
    assert [p["index"] for point, p in calls if point == "after_train_iteration_end"] == [0, 1, 2, 3, 4] * 2
    losses = [p["loss"] for point, p in calls if point == "after_val_iteration_end"]
    assert all(loss.ndim == 0 and not loss.requires_grad for loss in losses)
    saved = [p["path"] for point, p in calls if point == "after_checkpoint_persisted"]
    assert all(torch.load(path, weights_only=True)["epoch"] == epoch for epoch, path in enumerate(saved, 1))


def test_losses_are_the_mean_over_samples_not_over_batches(trained):
    hooks, calls = counter()
    sizes = [4, 4, 4, 4, 3]
    data = TensorDataset(*line(19))
    run = trained(train_dataloader=DataLoader(data, batch_size=4), val_dataloader=None, hooks=hooks, max_epochs=1)
    losses = [float(p["loss"]) for point, p in calls if point == "after_train_iteration_end"]
    mean = sum(size * loss for size, loss in zip(sizes, losses, strict=True)) / sum(sizes)
    assert run.metrics["train_loss"] == pytest.approx(mean, rel=1e-6)


def test_it_learns_and_keeps_the_lowest_losses(trained):
    run = trained(max_epochs=20)
    assert run.metrics["val_loss"] < 0.01
    assert run.trainer.lowest_val_loss <= run.metrics["val_loss"]
    assert run.trainer.lowest_train_loss <= run.metrics["train_loss"]


def test_without_validation_every_epoch_still_ends(trained):
    hooks, calls = counter()
    run = trained(val_dataloader=None, hooks=hooks)
    ends = [payload for point, payload in calls if point == "after_epoch_end"]
    assert [end["val_loss"] for end in ends] == [None, None]
    assert run.trainer.lowest_val_loss == math.inf
    assert not list(run.trainer.files.local_path("models").glob("best*"))


def test_trival_stops_after_ten_iterations_and_divides_by_what_it_saw(trained):
    hooks, calls = counter()
    many = DataLoader(TensorDataset(*line(60)), batch_size=2)
    run = trained(train_dataloader=many, val_dataloader=many, trival=True, hooks=hooks, max_epochs=1)
    count = Counter(point for point, _ in calls)
    assert count["after_train_iteration_end"] == count["after_val_iteration_end"] == 10
    losses = [float(p["loss"]) for point, p in calls if point == "after_train_iteration_end"]
    assert run.metrics["train_loss"] == pytest.approx(sum(losses) / 10, rel=1e-6)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_loss_function_is_called_by_name_where_it_names_data_first(trained, swapped):
    def loss(trainer, data):
        return ((trainer.model(data[0]) - data[1]) ** 2).mean()

    def named(data, trainer):
        return loss(trainer, data)

    assert trained(loss_func=named if swapped else loss).progress.step == 10


def test_accumulated_gradients_equal_those_of_a_larger_batch(trained, tmp_path):
    def data(size):
        return DataLoader(TensorDataset(*line(20)), batch_size=size)

    whole = trained(train_dataloader=data(10), alchemistic_directory=tmp_path / "a")
    pieces = trained(train_dataloader=data(2), accumulated_iter=5, alchemistic_directory=tmp_path / "b")
    assert whole.progress.step == pieces.progress.step == 4
    for name, value in whole.weights.items():
        torch.testing.assert_close(pieces.weights[name], value)


def test_the_last_accumulation_of_an_epoch_may_be_shorter(trained, tmp_path):
    """5 batches in steps of 4 are a step of 4 and one of 1, which counts as a whole one."""

    def train(**changes):
        return trained(train_dataloader=DataLoader(TensorDataset(*line(5)), batch_size=1), max_epochs=1, **changes)

    run = train(accumulated_iter=4, alchemistic_directory=tmp_path / "a")
    assert run.progress.step == 2
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    inputs, targets = line(5)
    for part in (slice(0, 4), slice(4, 5)):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs[part]), targets[part]).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(run.weights[name], value)


def test_no_worker_of_a_loader_outlives_the_training(trained):
    before = multiprocessing.active_children()
    data = TensorDataset(*line(5))
    trained(
        train_dataloader=DataLoader(data, num_workers=1, persistent_workers=True),
        val_dataloader=DataLoader(data, num_workers=1, persistent_workers=True),
    )
    assert not [child for child in multiprocessing.active_children() if child not in before]


def test_gradients_are_clipped(trained):
    norms = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            norms.append(float(nn.utils.get_total_norm([p.grad for g in self.param_groups for p in g["params"]])))
            return super().step(closure)

    model = nn.Linear(1, 1)
    trained(model=model, optimizer=Spy(model.parameters(), lr=0.01), clip_grad_norm=1e-3)
    assert max(norms) <= 1e-3 * 1.001


@pytest.mark.parametrize("order", [(False, "bf16"), ("bf16", False)], ids=str)
@pytest.mark.parametrize("change", [lambda model: model, copy.deepcopy], ids=["same", "copy"])
def test_each_trainer_of_a_model_has_its_own_precision(trained, order, change):
    class Model(nn.Linear):
        def forward(self, inputs):
            outputs = super().forward(inputs)
            self.kinds = {outputs.dtype}
            return outputs

    model = Model(1, 1)
    for number, amp in enumerate(order):
        model = change(model)
        trained(model=model, amp=amp, code=f"run-{number}")
        assert model.kinds == {torch.bfloat16 if amp else torch.float32}
        assert model(torch.ones(1, 1)).dtype == torch.float32


def test_bf16_computes_the_forward_in_bf16(trained):
    seen = set()

    class Model(nn.Linear):
        def forward(self, inputs):
            output = super().forward(inputs)
            seen.add(output.dtype)
            return output

    run = trained(model=Model(1, 1), amp="bf16")
    assert seen == {torch.bfloat16}
    assert run.weights["weight"].dtype is torch.float32


class TestResuming:
    def test_goes_on_to_the_same_weights_as_an_uninterrupted_run(self, trained, tmp_path):
        whole = trained(max_epochs=4, alchemistic_directory=tmp_path / "whole")
        trained(max_epochs=2)
        resumed = trained(max_epochs=4)
        assert same(resumed.weights, whole.weights)
        assert resumed.metrics == whole.metrics
        assert vars(resumed.progress) == vars(whole.progress)

    def test_in_the_middle_of_an_epoch_too(self, trained, tmp_path):
        def dropping(trainer, data):
            dropped = nn.functional.dropout(data[0], 0.5, training=trainer.model.training)
            return ((trainer.model(dropped) - data[1]) ** 2).mean()

        def stop(trainer, index):
            if trainer.current_epoch == 2 and index == 2:
                trainer.save_and_stop()

        whole = trained(loss_func=dropping, max_epochs=3, alchemistic_directory=tmp_path / "whole")
        stopped = trained(loss_func=dropping, max_epochs=3, hooks={"after_train_iteration_end": stop})
        assert (stopped.progress.epoch, stopped.progress.iteration) == (2, 3)
        resumed = trained(loss_func=dropping, max_epochs=3)
        assert same(resumed.weights, whole.weights)
        assert resumed.metrics == whole.metrics

    def test_optimizer_statable_plugin_and_curves_go_on(self, parts, tmp_path):
        class Count:
            seen = 0

            def after_epoch_end(self, trainer):
                self.seen += 1

            def state_dict(self):
                return {"seen": self.seen}

            def load_state_dict(self, state):
                self.seen = state["seen"]

        def run(epochs):
            arguments = parts(max_epochs=epochs, drawer="matplotlib")
            scheduler = torch.optim.lr_scheduler.StepLR(arguments["optimizer"], 1, gamma=0.5)
            count = Count()
            trainer = Trainer(
                **arguments,
                statable={"scheduler": scheduler},
                plugins=[count],
                hooks={"after_epoch_end": lambda trainer: scheduler.step()},
            )
            trainer.train()
            return trainer, scheduler, count

        run(2)
        trainer, scheduler, count = run(5)
        assert count.seen == 5
        assert scheduler.get_last_lr() == [0.1 * 0.5**5]
        drawn = [(curve, x) for graph, curve, x, _ in trainer.drawer.curves.points() if graph == "loss"]
        assert sorted(drawn) == [(curve, x) for curve in ("train", "val") for x in range(1, 6)]

    @pytest.mark.parametrize(
        ("resume", "epoch"),
        [
            (True, 4),
            ("latest", 4),
            ("epoch_2", 2),
            ("2", 2),
            (2, 2),
            ("epoch_3.pth.tar", 3),
            ("ABSOLUTE", 3),
            ("URL", 3),
            (False, 0),
        ],
    )
    def test_from_whatever_names_a_checkpoint(self, trained, make_trainer, tmp_path, resume, epoch):
        trained(max_epochs=4, code="a run")
        file = tmp_path / "runs" / "a run" / "models" / "epoch_3.pth.tar"
        resume = {"ABSOLUTE": str(file), "URL": f"file://{file}"}.get(resume, resume)
        assert make_trainer(code="a run", resume=resume).current_epoch == epoch

    def test_from_the_best(self, trained, make_trainer):
        hooks = {"after_epoch_end": lambda trainer: trainer.metrics.update(score=[1, 5, 3][trainer.current_epoch - 1])}
        trained(max_epochs=3, checkpoints=Checkpoints(monitor="score", mode="max"), hooks=hooks)
        assert make_trainer(checkpoints=Checkpoints(monitor="score", mode="max"), resume="best").current_epoch == 2

    def test_a_name_that_names_none_lists_what_there_is(self, trained, make_trainer):
        trained()
        with pytest.raises(CheckpointNotFoundError, match=r"no checkpoint 'epoch_7'.*epochs 2, 1"):
            make_trainer(resume="epoch_7")

    def test_another_model_is_refused(self, trained, make_trainer):
        trained()
        with pytest.raises(CheckpointMismatchError, match="does not fit this model"):
            make_trainer(model=nn.Linear(1, 1, bias=False))

    def test_another_optimizer_is_refused(self, trained, parts):
        trained()
        arguments = parts()
        arguments["optimizer"] = torch.optim.SGD(
            [{"params": [parameter]} for parameter in arguments["model"].parameters()], lr=0.1
        )
        groups = r"checkpoint: \(weight, bias\); only in the script: \(weight\), \(bias\)"
        with pytest.raises(CheckpointMismatchError, match=groups):
            Trainer(**arguments)

    def test_a_finished_run_says_so_and_changes_nothing(self, trained, tmp_path):
        trained()
        files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.pth.tar")}
        again = trained()
        assert again.progress.epoch == 2
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.pth.tar")} == files
        assert "All 2 epochs are done. Raise max_epochs" in (tmp_path / "runs/default/log.txt").read_text()

    def test_from_memory_and_other_storages(self, trained):
        trained(alchemistic_directory="memory://resuming/runs")
        assert trained(alchemistic_directory="memory://resuming/runs", max_epochs=3).progress.step == 15

    def test_a_stream_goes_on_too(self, trained, tmp_path):
        class Stream(IterableDataset):
            def __iter__(self):
                return zip(*line(20), strict=True)

        def run(**changes):
            return trained(train_dataloader=DataLoader(Stream(), batch_size=4), max_epochs=2, **changes)

        whole = run(alchemistic_directory=tmp_path / "whole")
        stop = {"after_train_iteration_end": lambda trainer, index: index == 1 and trainer.save_and_stop()}
        run(hooks=stop)
        assert same(run().weights, whole.weights)


class TestSaving:
    def names(self, tmp_path):
        return sorted(
            p.name.removesuffix(".pth.tar") for p in (tmp_path / "runs/default/models").iterdir() if p.is_symlink()
        )

    def test_every_stride_and_at_the_last_epoch(self, trained, tmp_path):
        trained(max_epochs=5, persist_stride=2, val_dataloader=None)
        assert self.names(tmp_path) == ["epoch_2", "epoch_4", "epoch_5", "latest"]

    def test_the_best_is_kept_between_strides(self, trained, tmp_path):
        trained(max_epochs=3, persist_stride=None)
        assert {"best", "latest"} <= set(self.names(tmp_path))

    def test_keep_last_drops_the_older_ones(self, trained, tmp_path):
        trained(max_epochs=6, checkpoints=Checkpoints(keep_last=2), val_dataloader=None)
        assert self.names(tmp_path) == ["epoch_5", "epoch_6", "latest"]
        payloads = [p for p in (tmp_path / "runs/default/models").glob("*.pth.tar") if not p.is_symlink()]
        assert len(payloads) == 2

    def test_by_steps(self, trained, tmp_path):
        saved = []
        trained(
            checkpoints=Checkpoints(every_steps=3),
            hooks={"before_checkpoint_persisted": lambda trainer: saved.append(trainer.progress.step)},
        )
        assert saved == [3, 5, 6, 9, 10]

    def test_by_the_clock(self, trained, tmp_path):
        saved = []
        trained(
            checkpoints=Checkpoints(every_minutes=1e-9),
            max_epochs=1,
            hooks={"before_checkpoint_persisted": lambda trainer: saved.append(trainer.progress.step)},
        )
        assert saved == [1, 2, 3, 4, 5, 5]

    def test_saves_that_come_while_one_is_under_way_can_be_one(self, trained, monkeypatch):
        opened, write = threading.Event(), Checkpointer._write_manifest
        asked, durable = [], []

        def gated(checkpointer, manifest):
            assert opened.wait(30)
            write(checkpointer, manifest)

        def let_it_end(trainer, index):
            if index == 3:
                opened.set()
                trainer._persistence._saver._under_way.result(timeout=30)

        monkeypatch.setattr(Checkpointer, "_write_manifest", gated)
        trained(
            checkpoints=Checkpoints(every_steps=1, when_busy="coalesce"),
            persist_stride=None,
            max_epochs=1,
            hooks={
                "after_train_iteration_end": let_it_end,
                "before_checkpoint_persisted": lambda trainer: asked.append(trainer.progress.step),
                "after_checkpoint_persisted": lambda trainer, path: durable.append(path),
            },
        )
        assert asked[:2] == [1, 4]  # those of steps 2 and 3 waited for the first, and became one
        assert len(durable) == len(asked)

    def test_waiting_for_durability(self, make_trainer, tmp_path):
        seen = []
        hooks = {"after_train_iteration_end": lambda trainer: seen.append(Path(trainer.persist(wait=True)).is_file())}
        make_trainer(hooks=hooks, max_epochs=1).train()
        assert seen == [True] * 5

    def test_what_is_durable_can_be_opened_by_its_name_at_once(self, make_trainer, tmp_path, monkeypatch):
        monkeypatch.setattr(Checkpointer, "tidy", lambda checkpointer: None)  # as long as it takes its time

        def persist(trainer, **_):
            trainer.persist("mine", wait=True)
            assert (tmp_path / "runs/default/models/mine.pth.tar").is_file()

        make_trainer(hooks={"after_epoch_end": persist}, max_epochs=1).train()

    def test_a_save_that_fails_ends_the_training_and_says_why(self, make_trainer, tmp_path):
        models = tmp_path / "runs/default/models"

        def break_the_disk(trainer, epoch):
            if epoch == 2:
                models.rename(tmp_path / "moved")
                models.write_text("no folder")

        trainer = make_trainer(hooks={"before_epoch_start": break_the_disk}, max_epochs=9)
        with pytest.raises(StorageError, match=r"cannot .*models"):
            trainer.train()
        assert trainer.progress.epoch <= 3

    def test_under_a_name_of_ones_own(self, make_trainer, tmp_path):
        hooks = {"before_epoch_start": lambda trainer, epoch: epoch == 2 and trainer.persist("before-surgery")}
        make_trainer(hooks=hooks).train()
        assert "before-surgery" in self.names(tmp_path)
        assert make_trainer(resume="before-surgery").progress.step == 5

    def test_the_payload_opens_with_plain_torch(self, trained, tmp_path):
        trained()
        state = torch.load(tmp_path / "runs/default/models/latest.pth.tar", weights_only=True)
        assert state["epoch"] == 2
        assert set(state["state_dict"]) == {"weight", "bias"}

    def test_the_manifest_tells_of_the_checkpoint(self, trained, tmp_path):
        trained()
        manifests = sorted((tmp_path / "runs/default/models").glob("*.json"))
        newest = json.loads(manifests[-1].read_text())
        assert (newest["epoch"], newest["step"], newest["world_size"]) == (2, 10, 1)

    def test_a_state_that_cannot_be_saved_is_named(self, make_trainer):
        class Odd:
            def state_dict(self):
                return {"function": print}

            def load_state_dict(self, state):
                pass

        with pytest.raises(ConfigurationError, match=r"statable.*odd.*function"):
            make_trainer(statable={"odd": Odd()}).train()


class TestStopping:
    def test_graceful_stop_ends_after_the_epoch(self, trained):
        hooks = {"after_train_iteration_end": lambda trainer, index: index == 1 and trainer.graceful_stop()}
        run = trained(hooks=hooks, max_epochs=5)
        assert (run.progress.epoch, run.progress.epoch_complete, run.progress.step) == (1, True, 5)

    @pytest.mark.parametrize("point", ["after_epoch_end", "after_val_iteration_end", "before_epoch_start"])
    def test_save_and_stop_from_any_point(self, trained, point):
        hooks, calls = counter()
        hooks[point] = lambda trainer: trainer.save_and_stop()
        run = trained(hooks=hooks, max_epochs=5)
        assert run.progress.epoch == 1
        assert [point for point, _ in calls][-2:] == ["after_checkpoint_persisted", "before_quit"]

    @pytest.mark.parametrize("max_time", [1e-9, timedelta(microseconds=1)])
    def test_max_time_saves_and_stops(self, trained, max_time):
        assert trained(max_time=max_time, max_epochs=None).progress.step == 1

    def test_a_failing_hook_ends_the_run_and_closes_the_log(self, make_trainer):
        def fail(trainer):
            raise ZeroDivisionError("in the hook")

        trainer = make_trainer(hooks={"after_epoch_end": fail})
        with pytest.raises(ZeroDivisionError, match="in the hook"):
            trainer.train()
        assert not any(isinstance(handler, logging.FileHandler) for handler in trainer.logger.handlers)

    def test_train_may_be_called_again(self, make_trainer):
        trainer = make_trainer(max_epochs=None)
        trainer._hooks.add("after_epoch_end", lambda trainer: trainer.graceful_stop())
        trainer.train()
        trainer.train()
        assert trainer.progress.epoch == 2


class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model": "resnet"}, "model must be a torch.nn.Module; str was given"),
            ({"optimizer": "adam"}, "optimizer must be a torch.optim.Optimizer"),
            ({"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters())}, "none of the model's parameters"),
            ({"train_dataloader": [1, 2]}, "train_dataloader must be a torch.utils.data.DataLoader; list"),
            ({"val_dataloader": [1, 2]}, "val_dataloader must be"),
            ({"loss_func": None}, "loss_func must be a function"),
            ({"loss_func": nn.MSELoss()}, "calls the model; MSELoss is called with"),
            ({"loss_func": lambda: 0}, r"must take two arguments, \(trainer, data\)"),
            ({"statable": [1]}, "statable must be a dict"),
            ({"statable": {"x": 1}}, r"statable\['x'\] must have the methods state_dict"),
            ({"hooks": {"after_epoch_ended": print}}, "Did you mean 'after_epoch_end'"),
            ({"hooks": {"after_epoch_end": 3}}, "must be a function or a list of functions; 3"),
            ({"hooks": {"after_epoch_end": lambda trainer, los: 0}}, "asks for 'los', but this point has 'epoch'"),
            ({"plugins": [object()]}, "no method named after a hook point"),
            ({"drawer": "matplotlab"}, "Did you mean 'matplotlib'"),
            ({"logging_format": "%(nothing"}, "logging_format"),
            ({"alchemistic_directory": "nosuch://bucket"}, "nosuch"),
            ({"code": "../escape"}, "code='../escape' is not allowed"),
            ({"code": ""}, "code='' is not allowed"),
            ({"resume": 1.5}, "resume=1.5: give True"),
            ({"eval_stride": 0}, "eval_stride must be a whole number from 1"),
            ({"persist_stride": -1}, "persist_stride must be a whole number from 1, or None"),
            ({"accumulated_iter": True}, "accumulated_iter=True is not allowed"),
            ({"amp": "fp8"}, "amp must be False or 'bf16' or 'fp16'"),
            ({"amp": "fp16"}, 'On a CPU use amp="bf16"'),
            ({"clip_grad_norm": 0}, "clip_grad_norm must be a number above 0, or None"),
            ({"max_time": -1}, "max_time=-1 is not allowed"),
            ({"max_time": float("nan")}, "max_time=nan is not allowed"),
            ({"seed": "x"}, "seed must be a whole number"),
            ({"trival": "yes"}, "trival must be True or False"),
            ({"checkpoints": {"keep_last": 3}}, "checkpoints must be options of minetorch, such as Checkpoints"),
            ({"strategy": "fsdp"}, "strategy='fsdp' is not allowed: strategy must be 'ddp' or 'exact', or a DDP"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_a_wrong_argument_is_an_error_at_construction_and_nothing_is_written(
        self, parts, tmp_path, changes, message
    ):
        arguments = parts()
        with pytest.raises(ConfigurationError, match=message):
            Trainer(**arguments | changes)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("loss", "message"),
        [
            (lambda trainer, data: 0.5, r"it returned float \(0.5\)"),
            (lambda trainer, data: trainer.model(data[0]), r"shape \(4, 1\)"),
            (lambda trainer, data: trainer.model(data[0]).mean().detach(), "without a gradient"),
        ],
    )
    def test_a_loss_that_cannot_be_trained_on_is_refused(self, make_trainer, loss, message):
        with pytest.raises(ConfigurationError, match=message):
            make_trainer(loss_func=loss).train()

    def test_no_data_is_said(self, make_trainer):
        with pytest.raises(ConfigurationError, match="train_dataloader has no batch"):
            make_trainer(train_dataloader=DataLoader(TensorDataset(torch.zeros(0, 1), torch.zeros(0, 1)))).train()

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"persist_stride": None},
            {"val_dataloader": None},
            {"checkpoints": Checkpoints(monitor="acuracy", keep_best=1)},
        ],
    )
    def test_a_monitor_that_never_comes_is_said_in_the_first_epoch_and_no_work_is_lost(
        self, make_trainer, trained, tmp_path, options
    ):
        trainer = make_trainer(**{"checkpoints": Checkpoints(monitor="acuracy"), **options})
        with pytest.raises(ConfigurationError, match="monitor='acuracy' is not among this epoch's metrics: 'train_los"):
            trainer.train()
        assert trainer.progress.epoch == 1
        assert len(list((tmp_path / "runs/default/models").glob("g*.json"))) == ("persist_stride" not in options)

    def test_the_monitored_metric_is_due_in_epochs_with_validation_alone(self, trained, make_trainer):
        def measure(trainer):
            if trainer.current_epoch % 2 == 0:
                trainer.metrics["accuracy"] = 0.5

        trained(
            checkpoints=Checkpoints(monitor="accuracy"), eval_stride=2, hooks={"after_epoch_end": measure}, max_epochs=5
        )
        trained(
            checkpoints=Checkpoints(monitor="accuracy"),
            eval_stride=2,
            hooks={"after_epoch_end": measure},
            val_dataloader=None,
            code="b",
        )
        with pytest.raises(ConfigurationError, match="monitor='accuracy' is not among"):
            make_trainer(
                checkpoints=Checkpoints(monitor="accuracy"), hooks={"after_epoch_end": measure}, code="c"
            ).train()

    def test_the_best_by_a_validation_that_there_is_not_is_refused(self, parts, make_trainer, trained, tmp_path):
        with pytest.raises(ConfigurationError, match=r"keep_best=2\) keeps .* without val_dataloader there is none"):
            Trainer(**parts(val_dataloader=None, checkpoints=Checkpoints(keep_best=2)))
        assert not list(tmp_path.iterdir())
        idle = {"after_epoch_end": lambda trainer: None}
        with pytest.raises(ConfigurationError, match=r"monitor='val_loss' is not .*give the Trainer a val_dataloader"):
            make_trainer(val_dataloader=None, checkpoints=Checkpoints(keep_best=2), hooks=idle).train()
        own = {"after_epoch_end": lambda trainer: trainer.metrics.update(val_loss=1.0)}
        trained(val_dataloader=None, checkpoints=Checkpoints(keep_best=2), hooks=own, code="own")
        trained(val_dataloader=None, checkpoints=Checkpoints(keep_best=2, monitor="train_loss"), code="other")

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_an_optimizer_whose_state_is_split_over_the_ranks_is_refused(self, parts, tmp_path):
        from torch.distributed.optim import ZeroRedundancyOptimizer

        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        try:
            model = nn.Linear(1, 1)
            optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.1)
            with pytest.raises(ConfigurationError, match="ZeroRedundancyOptimizer cannot be used here: each rank has"):
                Trainer(**parts(model=model, optimizer=optimizer))
        finally:
            torch.distributed.destroy_process_group()
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("required", [True, False])
    def test_an_optimizer_is_refused_if_its_step_needs_an_argument(self, parts, make_trainer, tmp_path, required):
        class Own(torch.optim.SGD):
            def step(self, closure, *more, loss=None, **others):
                return super().step()

        class Free(torch.optim.SGD):
            def step(self, closure=None, *more, loss=None, **others):
                return super().step()

        model = nn.Linear(1, 1)
        optimizer = (Own if required else Free)(model.parameters(), lr=0.1)
        torch.optim.lr_scheduler.ConstantLR(optimizer)  # it puts a step of its own in the place of this one
        if not required:
            make_trainer(model=model, optimizer=optimizer).train()
            return
        with pytest.raises(ConfigurationError, match=r"Own cannot be used here: its step\(\) needs 'closure'"):
            Trainer(**parts(model=model, optimizer=optimizer))
        assert not list(tmp_path.iterdir())

    def test_lbfgs_is_refused(self, parts, tmp_path):
        model = nn.Linear(1, 1)
        with pytest.raises(ConfigurationError, match=r"LBFGS cannot be used here: its step\(\) needs 'closure'"):
            Trainer(**parts(model=model, optimizer=torch.optim.LBFGS(model.parameters())))
        assert not list(tmp_path.iterdir())


def test_the_original_import_path():
    assert importlib.import_module("minetorch.trainer").Trainer is minetorch.Trainer


def test_the_log_has_the_format_that_was_asked_for(trained, tmp_path):
    trained(logging_format="<<%(message)s>>")
    lines = (tmp_path / "runs/default/log.txt").read_text().splitlines()
    assert lines[0] == "<<No checkpoint found: training from scratch.>>"
    assert lines[1].startswith("<<Training Linear (2 parameters) on cpu: ")
    assert lines[2].startswith("<<Epoch 1/2: train_loss ")


def test_what_the_console_shows_of_a_run(trained, tmp_path, capsys):
    trained(max_epochs=3, accumulated_iter=2)
    shown = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    run = tmp_path / "runs/default"
    assert shown[1] == (
        "Training Linear (2 parameters) on cpu: 5 batches of 4 per epoch, 2 batches per step, float32. "
        f"Directory: {run}"
    )
    epochs = [line for line in shown if line.startswith("Epoch ")]
    losses = [
        re.fullmatch(r"Epoch \d/3: train_loss \S+, val_loss (\S+) \(.* samples/s\)( best)?", line) for line in epochs
    ]
    best = min(range(3), key=lambda epoch: float(losses[epoch][1]))
    assert losses[best][2] == " best"
    assert re.fullmatch(
        rf"Ended at step 9\. Best: val_loss {losses[best][1]} \(epoch {best + 1}\)\. Time: \S+ s\. "
        rf"Checkpoints, graphs and log: {run}",
        shown[-1],
    )
    assert (run / "log.txt").read_text().splitlines()[-1].endswith(shown[-1])


def test_a_resumed_run_knows_its_best_epoch(trained, capsys):
    trained(max_epochs=1)
    best = re.search(r"Best: val_loss (\S+) \(epoch 1\)", capsys.readouterr().err)[1]
    trained(max_epochs=1)
    assert f"Ended at step 5. Best: val_loss {best} (epoch 1). " in capsys.readouterr().err


def test_a_run_without_validation_has_no_best_epoch(trained, capsys):
    trained(val_dataloader=None)
    shown = capsys.readouterr().err
    assert "Ended at step 10. Time: " in shown
    assert " best" not in shown


@pytest.mark.parametrize(
    ("loader", "text"),
    [
        ({"batch_sampler": [[0, 1, 2], [3]]}, ": 2 batches per epoch, "),
        ({"batch_size": 4, "drop_last": True}, ": 5 batches of 4 per epoch, "),
    ],
)
def test_the_batches_that_the_start_tells(trained, capsys, loader, text):
    trained(train_dataloader=DataLoader(TensorDataset(*line(21)), **loader), max_epochs=1)
    assert text in capsys.readouterr().err


def test_graphs_are_drawn(trained, tmp_path):
    trained(drawer=["matplotlib", "tensorboard"])
    assert (tmp_path / "runs/default/graph/loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "runs").rglob("events.out.tfevents*"))
