"""Curves are read without weights, also out of payloads of format 1, of which nothing is run."""

import logging
import os
import pickle
import zipfile
from collections import OrderedDict
from io import BytesIO

import numpy as np
import pytest
import torch

import minetorch
from minetorch.checkpoint import Checkpointer, Store
from minetorch.drawers import Curves
from minetorch.errors import CheckpointCorruptError
from minetorch.views.payload import Payload
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
        "drawer": curves_of(10_000).state_dict(),
    }
    run.save(state, step=1, epoch=1, epoch_complete=True, position=0, world_size=1, metrics={})
    fetched = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("read_range", "read"):
            whole = getattr(Store, name)
            patch.setattr(Store, name, lambda *words, whole=whole: fetched.append(whole(*words)) or fetched[-1])
        graph = Record.open(f"{aws.url}/runs/large", now=0.0).graph("loss")
    assert graph.points == 20_000
    assert run.manifests[-1].size > 200_000_000
    # 0.4 % as measured: the directory, the pickle, and 320 kB of points.
    assert 320_000 < sum(map(len, fetched)) < 0.01 * run.manifests[-1].size


class Hostile:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['HOSTILE']}",)


def test_nothing_in_it_is_run(saved, tmp_path, monkeypatch):
    store, manifest = saved({"epoch": 1, "drawer": curves_of(3).state_dict()})
    monkeypatch.setenv("HOSTILE", str(tmp_path / "ran"))
    path = store.child("models").local_path(manifest.payload)
    with zipfile.ZipFile(path) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    (name,) = [name for name in files if name.endswith("data.pkl")]
    files[name] = pickle.dumps({"epoch": 1, "evil": Hostile()}, protocol=2)
    with zipfile.ZipFile(path, "w") as archive:
        for file, data in files.items():
            archive.writestr(file, data)
    assert Payload(store.child("models"), manifest).state["epoch"] == 1
    assert not (tmp_path / "ran").exists()
    os.system(Hostile().__reduce__()[1][0])  # it would have
    assert (tmp_path / "ran").exists()


class Tampered:
    """A tensor whose pickle goes on to change what has been made of it."""

    def __init__(self, change):
        self.change = change

    def __reduce__(self):
        storage = torch.UntypedStorage(48)
        return torch._utils._rebuild_tensor_v2, (storage, 0, (2, 3), (3, 1), False, OrderedDict()), self.change


@pytest.mark.parametrize("change", [{"shape": "xx"}, (None, {"stride": Hostile()}), {"is_contiguous": True}])
def test_a_pickle_cannot_change_what_stands_for_a_tensor(saved, monkeypatch, change):
    monkeypatch.setenv("HOSTILE", "/nowhere/at/all")
    store, manifest = saved({"drawer": curves_of(3).state_dict()})
    path = store.child("models").local_path(manifest.payload)
    with zipfile.ZipFile(path) as archive:
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    (name,) = [name for name in files if name.endswith("data.pkl")]
    content = BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            is_storage = isinstance(value, torch.UntypedStorage)
            return ("storage", torch.DoubleStorage, "0", "cpu", 6) if is_storage else None

    pickler = Pickler(content, protocol=2)
    pickler.dump({"drawer": {"graphs": {"loss": {"train": Tampered(change)}}}})
    files[name] = content.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for file, data in files.items():
            archive.writestr(file, data)
    with pytest.raises(CheckpointCorruptError, match=manifest.payload):
        Payload(store.child("models"), manifest)


@pytest.mark.parametrize(
    "spoil", [lambda data: bytes(len(data)), lambda data: data[:-100], lambda data: data[:999] * 3]
)
def test_garbage_is_an_error_that_names_the_file(saved, spoil):
    store, manifest = saved({"drawer": curves_of(3).state_dict()})
    path = store.child("models").local_path(manifest.payload)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(CheckpointCorruptError, match=manifest.payload):
        Payload(store.child("models"), manifest)


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
