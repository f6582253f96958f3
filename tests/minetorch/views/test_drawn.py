"""Curves are read without weights, those of a checkpoint of format 1 out of its payload, of which no code is run."""

import dataclasses
import logging
import os
from io import BytesIO

import numpy as np
import pytest
import torch

import minetorch
from minetorch.checkpoint import Checkpointer, Store
from minetorch.checkpoint.digest import digest_of
from minetorch.drawers import Curves
from minetorch.views.record import Record


def curves_of(points):
    curves = Curves()
    for x in range(1, points + 1):
        curves.add("loss", "train", x, 1 / x)
        curves.add("loss", "val", x, float("nan"))
    return curves


def test_curves_are_those_that_a_whole_reading_gives(plans):
    state = minetorch.load(plans / "plan-b", "latest")
    graphs = Record.open(plans / "plan-b", now=0.0).drawn.graphs
    assert list(graphs) == list(state["drawer"]["graphs"])
    for name, graph in graphs.items():
        expected = state["drawer"]["graphs"][name]
        assert list(graph.curves) == list(expected)
        for curve, points in graph.curves.items():
            np.testing.assert_array_equal(points, expected[curve].numpy())
    assert graphs["loss per step"].x_name == "step"


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # aiohttp's, of what s3fs hands it
def test_less_than_a_hundredth_of_a_large_one_is_fetched(aws):
    """200 MB of weights and moments on S3, and 20,000 points."""
    store = Store.open(f"{aws.url}/runs/large")
    run = Checkpointer(store.child("models"), logger=logging.getLogger("tests"))
    weights = torch.zeros(25_000_000)
    state = {
        "state_dict": {"w": weights},
        "optimizer": {"m": weights.clone()},
    }
    curves = curves_of(10_000).snapshot()
    run.save(state, curves=curves, step=1, epoch=1, epoch_complete=True, position=0, world_size=1, metrics={})
    fetched = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("read_range", "read", "read_large"):
            whole = getattr(Store, name)
            patch.setattr(Store, name, lambda *words, whole=whole: fetched.append(whole(*words)) or fetched[-1])
        graph = Record.open(f"{aws.url}/runs/large", now=0.0).graph("loss")
    assert graph.points == 20_000
    assert run.manifests[-1].size > 200_000_000
    # The manifests, and 320 kB of points.
    assert 320_000 < sum(map(len, fetched)) < 0.01 * run.manifests[-1].size


def as_format_1(store, manifest, payload=None):
    """Make a checkpoint one of format 1, whose curves are in the payload, and that vouches for what is in it."""
    path = store.child("models").local_path(manifest.payload)
    state = torch.load(path, weights_only=True)
    payload = payload or torch_bytes({"progress": {}, **state, "drawer": curves_of(3).state_dict()})
    path.write_bytes(payload)
    old = dataclasses.replace(manifest, format=1, curves=None, size=len(payload), digest=digest_of(payload))
    store.child("models").local_path(manifest.key.manifest).write_bytes(old.to_json())


def torch_bytes(state):
    file = BytesIO()
    torch.save(state, file)
    return file.getvalue()


def test_the_curves_of_an_old_checkpoint_are_read(saved, tmp_path):
    as_format_1(*saved({"epoch": 1}))
    graph = Record.open(tmp_path / "run", now=0.0).graph("loss")
    np.testing.assert_array_equal(graph.curves["train"], [[1, 2, 3], [1, 1 / 2, 1 / 3]])


class Hostile:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['HOSTILE']}",)


@pytest.mark.parametrize("state", [{"evil": Hostile()}, {"drawer": 3, "progress": {}}, b"no archive"])
def test_an_old_checkpoint_with_code_or_garbage_in_it_is_a_problem_that_names_the_file(
    saved, tmp_path, monkeypatch, state
):
    monkeypatch.setenv("HOSTILE", str(tmp_path / "ran"))
    store, manifest = saved({"epoch": 1})
    as_format_1(store, manifest, state if isinstance(state, bytes) else torch_bytes(state))
    drawn = Record.open(tmp_path / "run", now=0.0).drawn
    assert manifest.payload in drawn.problem
    assert not drawn.graphs
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "drawer",
    [None, [], {"graphs": []}, {"graphs": {"loss": 3}}, {"graphs": {"loss": {"train": "x"}}, "marks": 3, "x_names": 7}],
)
def test_a_record_of_another_shape_has_no_points(saved, tmp_path, drawer):
    saved({"drawer": drawer, "history": [3, {"x": 1}]})
    drawn = Record.open(tmp_path / "run", now=0.0).drawn
    assert sum(graph.points for graph in drawn.graphs.values()) == 0
    assert list(drawn.history) == []


def test_a_damaged_newest_one_gives_way_to_the_one_before(plans):
    models = plans / "plan-a/models"
    newest = max(models.glob("g*.curves"))
    newest.write_bytes(b"x" * newest.stat().st_size)
    drawn = Record.open(plans / "plan-a", now=0.0).drawn
    assert newest.name in drawn.problem
    assert drawn.graphs["loss"].points == 4
