"""Where the time goes, and what a classifier's predictions and a sample's losses come to."""

import csv
import gzip

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassF1Score, MulticlassRecall

import minetorch
from minetorch import CheckpointMismatchError, Checkpoints, ConfigurationError
from minetorch.plugins import Classification, EarlyStopping, Metrics, NoisySamples, Profile, Throughput, negative_margin
from minetorch.plugins.confusion import accuracy, macro_f1, per_class, picture
from minetorch.plugins.noisy_samples import History, lower_shares
from minetorch.plugins.throughput import Timeline, slowest_for_data
from minetorch_launch.heartbeat import Phase


def cross_entropy(trainer, data):
    return nn.functional.cross_entropy(trainer.model(data[0]), data[1])


def classes(length, classes=3):
    labels = torch.arange(length) % classes
    return TensorDataset(nn.functional.one_hot(labels, classes).float(), labels)


@pytest.fixture
def classifier():
    """Arguments for a run that classifies."""

    def make(**changes):
        torch.manual_seed(0)
        return {
            "model": nn.Linear(3, 3),
            "train_dataloader": DataLoader(classes(24), batch_size=4, shuffle=True),
            "val_dataloader": DataLoader(classes(10), batch_size=4),
            "loss_func": cross_entropy,
        } | changes

    return make


def test_the_timeline_knows_what_each_second_was_for():
    now = [0.0]
    line = Timeline(lambda: now[0])

    def spend(seconds):
        now[0] += seconds

    line.enter(Phase.TRAINING)
    line.turn_to("data")
    spend(1)
    line.turn_to("forward+backward")
    spend(2)
    line.turn_to("optimizer")
    spend(4)
    line.turn_to("loop")
    spend(8)
    line.enter(Phase.IN_HOOK)
    spend(16)
    line.enter(Phase.TRAINING)
    spend(8)
    line.enter(Phase.SAVING)
    spend(32)
    line.enter(Phase.TRAINING)
    line.enter(Phase.VALIDATING)
    spend(100)
    line.enter(Phase.IN_HOOK)
    spend(100)
    line.enter(Phase.SAVING)
    spend(32)
    assert line.take() == {
        "data": 1, "forward+backward": 2, "optimizer": 4, "loop": 16, "hooks": 16, "saving": 64, "validation": 200
    }  # fmt: skip
    assert set(line.take().values()) == {0.0}


def test_the_rank_that_waits_for_data_is_named():
    assert slowest_for_data([1.0, 1.2, 30.0]) == " (data of rank 2: 30)"
    assert slowest_for_data([5.0, 6.0]) == ""
    assert slowest_for_data([5.0]) == ""


def test_throughput_is_drawn_and_changes_nothing(trained, tmp_path):
    plain = trained(alchemistic_directory=tmp_path / "plain", accumulated_iter=2)
    run = trained(alchemistic_directory=tmp_path / "measured", accumulated_iter=2, plugins=[Throughput()])
    assert all(torch.equal(value, run.weights[name]) for name, value in plain.weights.items())
    assert run.metrics["samples_per_s"] > 0
    drawn = {(graph, curve) for graph, curve, _, _ in run.trainer.drawer.curves.points()}
    parts = {"data", "forward+backward", "optimizer", "hooks", "saving", "loop"}
    assert drawn == {("loss", "train"), ("loss", "val"), ("samples_per_s", "samples_per_s")} | {
        ("step_time_ms", part) for part in parts
    }
    assert run.trainer.train_dataloader.observe is None


def test_windows_of_a_profile_also_on_a_remote_storage(trained):
    profile = Profile(wait=1, warmup=1, active=1, repeat=2)
    run = trained(plugins=[profile], alchemistic_directory="memory://profiled", resume=False)
    for step in (3, 6):
        assert b"aten::" in run.trainer.files.read(f"profile/rank_0_step_{step}.txt")
    assert b"traceEvents" in gzip.decompress(run.trainer.files.read("profile/rank_0_step_3.pt.trace.json.gz"))


def test_a_rank_that_is_not_there_has_no_profile(make_trainer):
    with pytest.raises(ConfigurationError, match="this run has 0 to 0"):
        make_trainer(plugins=[Profile(ranks=[0, 1])])


COUNTS = np.array([[3, 1, 0], [0, 4, 0], [0, 2, 0]])


def test_figures_of_a_matrix():
    assert accuracy(COUNTS) == 0.7
    figures = per_class(COUNTS)
    assert figures["precision"][:2] == [1.0, 4 / 7]
    assert np.isnan(figures["precision"][2])
    assert figures["recall"] == [0.75, 1.0, 0.0]
    assert figures["f1"] == [6 / 7, 8 / 11, 0.0]
    assert macro_f1(COUNTS) == pytest.approx((6 / 7 + 8 / 11) / 3)
    assert np.isnan(accuracy(0 * COUNTS))
    assert np.isnan(macro_f1(0 * COUNTS))


def test_a_picture_of_many_classes():
    assert picture(np.eye(100, dtype=np.int64), [f"class {place}" for place in range(100)], "many").startswith(
        b"\x89PNG"
    )


def test_torchmetrics_and_the_plugin_agree_and_best_follows_them(trained, classifier, tmp_path):
    collection = MetricCollection({"macro": MulticlassF1Score(3, average="macro"), "recall": MulticlassRecall(3)})
    plugins = [Classification(3), Metrics({"torch": collection, "each": MulticlassF1Score(3, average=None)})]
    run = trained(**classifier(plugins=plugins, checkpoints=Checkpoints(monitor="accuracy", mode="max")))
    assert run.metrics["torch_macro"] == pytest.approx(run.metrics["macro_f1"])
    each = [y for graph, curve, _, y in run.trainer.drawer.curves.points() if graph == "each"]
    assert sum(each[-3:]) / 3 == pytest.approx(run.metrics["macro_f1"])
    assert minetorch.load(tmp_path / "runs/default", "best")["metrics"]["accuracy"] > 0


def test_two_classes_by_one_logit_and_ignored_targets(trained):
    inputs = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    targets = torch.tensor([0, 1, 1, -100])
    model = nn.Linear(1, 1)
    nn.init.ones_(model.weight)
    nn.init.zeros_(model.bias)
    data = DataLoader(TensorDataset(inputs, targets), batch_size=3)

    def loss(trainer, data):
        return 0 * trainer.model(data[0]).sum()

    run = trained(
        model=model, train_dataloader=data, val_dataloader=data, loss_func=loss, max_epochs=1,
        plugins=[Classification(["no", "yes"])],
    )  # fmt: skip
    assert run.metrics["accuracy"] == pytest.approx(2 / 3)
    rows = list(csv.DictReader(run.trainer.files.read("classification.csv").decode().splitlines()))
    assert [(row["class"], row["samples"]) for row in rows] == [("no", "1"), ("yes", "2")]


@pytest.mark.parametrize(
    ("changes", "plugin", "message"),
    [
        ({}, lambda: Classification(4), r"4 classes, but scores of shape \(4, 3\)"),
        ({}, lambda: Classification(3, scores=lambda output, data: [output]), "the model returned list"),
        ({}, lambda: Classification(3, targets=lambda data: data[1][:2]), r"targets of shape \(2,\)"),
        (
            {},
            lambda: Classification(3, targets=lambda data: data[1] + 1),
            r"3 targets are not among the classes 0 to 2",
        ),
        (
            {"loss_func": lambda trainer, data: trainer.unwrapped_model.weight.sum()},
            lambda: Classification(3),
            "did not call trainer.model",
        ),
        ({}, lambda: Metrics({"f1": max}), "must be a torchmetrics.Metric"),
        ({}, lambda: NoisySamples(None), "must be a function of"),
        ({}, lambda: NoisySamples(lambda output, data: output.mean()), r"returned shape \(\) for 4 samples"),
        ({}, lambda: Classification(1), "from 2"),
    ],
)
def test_what_does_not_fit_says_what_does(make_trainer, classifier, changes, plugin, message):
    with pytest.raises(ConfigurationError, match=message):
        make_trainer(**classifier(plugins=[plugin()], **changes)).train()


def losses(output, data):
    return nn.functional.cross_entropy(output, data[1], reduction="none")


def test_shares_and_the_order_of_suspects():
    assert lower_shares(torch.tensor([5.0, 1.0, 1.0, 9.0, 7.0])).tolist() == [0.5, 0.0, 0.0, 1.0, 0.75]
    history = History(4)
    history.add(torch.tensor([9.0, 1.0, 5.0, float("nan")], dtype=torch.float64))
    history.add(torch.tensor([4.0, 3.0, 2.0, float("nan")], dtype=torch.float64))
    first, second, third = history.top(9)
    assert (first.sample, first.suspicion, first.mean_loss, first.last_loss, first.epochs) == (0, 1.0, 6.5, 4.0, 2)
    assert (second.sample, second.suspicion, third.sample, third.suspicion) == (1, 0.25, 2, 0.25)


def test_the_margin_is_that_to_the_best_other_class():
    scores = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    assert negative_margin(scores, torch.tensor([0, 1])).tolist() == [2.0, -1.0]


def test_a_stream_or_another_dataset_has_no_samples_to_follow(make_trainer, trained, classifier):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from classes(24)

    with pytest.raises(ConfigurationError, match="Stream has no length"):
        make_trainer(**classifier(train_dataloader=DataLoader(Stream(), batch_size=4), plugins=[NoisySamples(losses)]))
    trained(**classifier(plugins=[NoisySamples(losses)]))
    other = DataLoader(classes(27), batch_size=4)
    with pytest.raises(CheckpointMismatchError, match="of a dataset of 24 samples, and this one has 27"):
        make_trainer(**classifier(train_dataloader=other, plugins=[NoisySamples(losses)]))


def test_a_run_that_is_asked_to_stop_before_its_first_epoch_does(trained, tmp_path):
    stopped = trained(hooks={"after_init": lambda trainer: trainer.graceful_stop()})
    assert stopped.progress.epoch == 0
    assert trained(plugins=[EarlyStopping()]).progress.epoch == 2


def test_every_plugin_is_offered_and_says_how_it_is_used():
    import minetorch.plugins as plugins

    for name in plugins.__all__:
        text = getattr(plugins, name).__doc__
        assert name == "negative_margin" or "plugins=[" in text, name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        plugins.Nothing  # noqa: B018
