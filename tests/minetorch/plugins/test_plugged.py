"""All plugins at once on two real workers, of which one is killed amid an epoch and started again."""

import gzip
import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import minetorch

pytestmark = pytest.mark.slow

MISLABELLED = {3, 40, 77}
CLOCKED = {"samples_per_s", "step_time_ms"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, launch):
    """What both ranks found, the folder and the last checkpoint of a run left alone, and of one that was killed."""
    made = {}
    for way in ("leave alone", "kill"):
        out = tmp_path_factory.mktemp("plugged") / way
        output = launch(2, "plugged.py", out, way, options=["--max-restarts", "1"])
        assert ("rank 1 failed: killed by SIGKILL" in output) == (way == "kill")
        assert ("epoch 2, iteration 5, step" in output) == (way == "kill")
        made[way] = SimpleNamespace(
            ranks=[json.loads((out / f"rank_{rank}.json").read_text()) for rank in (0, 1)],
            folder=out / "runs/default",
            state=minetorch.load(out / "runs/default", "latest"),
        )
    return made


@pytest.fixture
def whole(runs):
    return runs["leave alone"]


def assert_same(first, second, where=""):
    """Equal to the bit, all the way down."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for place, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same(one, other, f"{where}[{place}]")
    elif isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype, where
        assert torch.equal(first, second), where
    else:
        assert first == second, where


def curves(state):
    return {name: graph for name, graph in state["drawer"]["graphs"].items() if name not in CLOCKED}


def test_a_killed_run_ends_as_one_that_was_left_alone(runs):
    killed, whole = runs["kill"].state, runs["leave alone"].state
    assert set(whole["plugins"]) == {
        "LRSchedule", "EMA", "GradNorm", "NoisySamples", "EarlyStopping", "BestK accuracy", "BestK train_loss"
    }  # fmt: skip
    for key in ("state_dict", "optimizer", "plugins", "progress"):
        assert_same(killed[key], whole[key], key)
    assert_same(curves(killed), curves(whole), "curves")
    assert curves(whole).keys() >= {"learning_rate", "gradient_norm", "sample_losses", "classification", "auroc"}
    assert runs["kill"].ranks[0]["metrics"] == runs["leave alone"].ranks[0]["metrics"]


def test_every_rank_has_the_same_figures(whole):
    first, second = whole.ranks
    assert first["metrics"] == second["metrics"]
    assert first["samples_per_s"] == second["samples_per_s"] > 0
    assert first["suspects"] == second["suspects"] or not second["suspects"]


def test_the_indices_of_all_ranks_batches_are_each_sample_once_an_epoch(whole):
    seen = Counter(index for rank in whole.ranks for index in rank["seen"])
    assert seen == Counter(dict.fromkeys(range(112), 3))


def blobs(length):
    generator = torch.Generator().manual_seed(length)
    labels = torch.arange(length) % 3
    return torch.randn(length, 3, generator=generator) + 5 * nn.functional.one_hot(labels, 3), labels


def test_the_metrics_are_those_of_the_averaged_weights_over_each_sample_once(whole):
    model = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)).eval()
    model.load_state_dict(whole.state["plugins"]["EMA"]["average"])
    inputs, labels = blobs(33)
    with torch.no_grad():
        output = model(inputs)
    metrics = whole.ranks[0]["metrics"]
    assert metrics["accuracy"] == float((output.argmax(1) == labels).sum()) / 33
    assert metrics["torch_accuracy"] == pytest.approx(metrics["accuracy"])
    assert metrics["val_loss"] == pytest.approx(float(nn.functional.cross_entropy(output, labels)), rel=1e-5)
    table = (whole.folder / "classification.csv").read_text().splitlines()
    assert table[0] == "class,precision,recall,f1,samples"
    assert [line.split(",")[0] for line in table[1:]] == ["red", "green", "blue"]
    assert [line.split(",")[-1] for line in table[1:]] == ["11", "11", "11"]
    assert (whole.folder / "graph/confusion_matrix.png").read_bytes().startswith(b"\x89PNG")


def test_mislabelled_samples_are_the_suspects(whole):
    assert set(whole.ranks[0]["suspects"]) >= MISLABELLED
    rows = (whole.folder / "noisy_samples.csv").read_text().splitlines()
    assert rows[0] == "sample,suspicion,mean_loss,last_loss,epochs"
    assert {int(row.split(",")[0]) for row in rows[1:]} >= MISLABELLED


def test_the_best_by_each_metric_have_names(whole):
    models = whole.folder / "models"
    values = {
        name: json.loads((models / name).resolve().with_suffix("").with_suffix(".json").read_text())["metrics"]
        for name in ("best_accuracy.pth.tar", "best_accuracy_1.pth.tar", "best_accuracy_2.pth.tar")
    }
    best = max(value["accuracy"] for value in values.values())
    assert values["best_accuracy.pth.tar"]["accuracy"] == best
    assert (models / "best_train_loss.pth.tar").exists()


def test_every_rank_that_was_asked_for_has_its_trace(whole):
    for rank in (0, 1):
        trace = json.loads(
            gzip.decompress((whole.folder / f"profile/rank_{rank}_step_4.pt.trace.json.gz").read_bytes())
        )
        names = {event.get("name") for event in trace["traceEvents"]}
        assert any("ProfilerStep" in str(name) for name in names)
        assert "aten::native_batch_norm" in names
        assert "aten::" in (whole.folder / f"profile/rank_{rank}_step_4.txt").read_text()


def test_the_log_says_where_the_time_went(whole):
    lines = [line for line in (whole.folder / "log.txt").read_text().splitlines() if "Step time in ms: data" in line]
    assert len(lines) == 3
    assert all(part in lines[-1] for part in ("forward+backward", "optimizer", "hooks", "saving", "loop"))


def test_a_rank_without_a_share_of_the_validation_takes_part(whole):
    assert whole.ranks[0]["one"] == whole.ranks[1]["one"]
    assert whole.ranks[0]["one"]["accuracy"] in (0.0, 1.0)
    assert whole.ranks[0]["one"]["auroc"]


def test_every_rank_says_whose_data_was_not_finite(whole):
    messages = [found["nan"] for found in whole.ranks]
    assert messages[0] == messages[1]
    assert "it comes from the data of the batch" in messages[0]
    named = messages[0].split("samples ")[1].split(":")[0].split(", ")
    assert "50" in named
    assert len(named) == 8


def test_parameters_may_be_unused_where_that_was_asked_for(whole):
    assert [found["unused"] for found in whole.ranks] == [4, 4]
