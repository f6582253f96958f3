"""The file of curves: exact, read without the payload, and no reason to lose weights."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minetorch.checkpoint import Checkpointer, Manifest, Store
from minetorch.checkpoint.curves_file import parse_curves
from minetorch.checkpoint.saver import Saver
from minetorch.drawers import Curves, Mark
from minetorch.errors import CheckpointCorruptError

Make = Callable[..., Checkpointer]
Save = Callable[..., Manifest]
Peek = Callable[..., Any]

FACTS: dict[str, Any] = {"step": 1, "epoch": 1, "epoch_complete": True, "position": 0, "world_size": 1, "metrics": {}}


def content_of(curves: Curves) -> bytes:
    return b"".join(curves.snapshot())


def odd_curves() -> Curves:
    curves = Curves()
    for x, y in ((0.1, float("nan")), (1e-300, float("inf")), (-0.0, 5e-324)):
        curves.add("a \n\udcff/ü", "", x, y)
    curves.add("a \n\udcff/ü", "train", 1.0, 2.0)
    curves.add("loss", "val", 3.0, 4.0)
    curves.name_x("loss", "step")
    curves.marks.append(Mark("resume", 1.5, 7, 1e9))
    curves.media = 2
    return curves


def test_every_bit_comes_back() -> None:
    curves = odd_curves()
    data = content_of(curves)
    found = parse_curves(memoryview(data), "here")
    assert [(graph, list(found["graphs"][graph])) for graph in found["graphs"]] == [
        ("a \n\udcff/ü", ["", "train"]),
        ("loss", ["val"]),
    ]
    for graph in curves:
        for name, curve in curves[graph].items():
            assert found["graphs"][graph][name].tobytes() == curve.to_numpy().tobytes()
    assert (found["x_names"], found["marks"], found["media"]) == ({"loss": "step"}, [["resume", 1.5, 7, 1e9]], 2)


def test_a_snapshot_does_not_grow_with_its_curves() -> None:
    curves = odd_curves()
    before, snapshot = content_of(curves), curves.snapshot()
    for _ in range(10_000):
        curves.add("loss", "val", 0.0, 0.0)
        curves.add("new", "new", 0.0, 0.0)
    curves.marks.clear()
    assert b"".join(snapshot) == before == b"".join(snapshot)


def test_points_may_come_while_it_is_written() -> None:
    curves = Curves()
    for number in range(200_000):
        curves.add("loss", "train", number, -number)
    snapshot, done = curves.snapshot(), threading.Event()

    def draw() -> None:
        while not done.is_set():
            curves.add("loss", "train", 0.0, 0.0)

    drawing = threading.Thread(target=draw)
    drawing.start()
    try:
        found = [parse_curves(b"".join(snapshot), "here")["graphs"]["loss"]["train"] for _ in range(5)]
    finally:
        done.set()
        drawing.join()
    expected = np.array([np.arange(200_000), -np.arange(200_000)], dtype=np.float64)
    assert all(np.array_equal(points, expected) for points in found)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"[]\n",
        b'{"graphs": [["a", [["b", 1]]]]}\n1234567',
        b'{"graphs": [["a", [["b", 1]]]]}\n' + bytes(24),
        b'{"graphs": [["a", [["b", -1]]]]}\n' + bytes(16),
        b'{"graphs": [["a", [["b", 1e999]]]]}\n',
        b'{"graphs": [["a", [["b", 999999999999999]]]]}\n',
    ],
)
def test_garbage_is_told(data: bytes) -> None:
    with pytest.raises(CheckpointCorruptError, match="here is not a file of curves"):
        parse_curves(data, "here")


DAMAGE: dict[str, Callable[[Store, Manifest], object]] = {
    "missing": lambda store, manifest: store.delete(manifest.key.curves),
    "truncated": lambda store, manifest: store.write(manifest.key.curves, store.read(manifest.key.curves)[:-1]),
    "changed": lambda store, manifest: store.write(manifest.key.curves, store.read(manifest.key.curves)[:-1] + b"\1"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_of_curves_is_told_and_does_not_cost_the_weights(
    models: Store, checkpointer: Make, save: Save, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    run = checkpointer(models)
    save(run, 1)
    newest = save(run, 2)
    DAMAGE[kind](models, newest)
    found = checkpointer(models).open(True)
    assert found is not None
    assert found.manifest == newest
    assert found.state["model"][0] == 2
    assert "drawer" not in found.state
    assert f"The curves of checkpoint {newest.name} are lost, the rest of it is whole" in caplog.text


def test_the_training_thread_copies_no_point(models: Store, checkpointer: Make, peek: Peek) -> None:
    """They are read on the saving thread, up to where they were."""
    threads = set()
    curves = Curves()
    curves.add("loss", "train", 1.0, 2.0)
    snapshot = curves.snapshot()

    class Pieces:
        def __iter__(self) -> Any:
            threads.add(threading.current_thread().name)
            return iter(snapshot)

    saver = Saver(checkpointer(models))
    saver.save({"model": 1}, names=(), curves=Pieces(), **FACTS)
    curves.add("loss", "train", 3.0, 4.0)
    saver.close()
    assert all(name.startswith("minetorch-save") for name in threads)
    assert peek(models).state["drawer"]["graphs"]["loss"]["train"].tolist() == [[1.0], [2.0]]


def test_an_orphan_is_swept_and_a_kept_one_is_not(models: Store, checkpointer: Make, save: Save) -> None:
    run = checkpointer(models)
    kept = save(run, 1)
    orphan = save(run, 2)
    models.delete(orphan.key.manifest)  # as if the writer had died before it
    successor = Checkpointer(models, logger=logging.getLogger("tests"), grace_s=0.0)
    successor.open(True)
    newest = save(successor, 3)
    left = {name for name in models.list("g") if not models.is_link(name)}
    assert left == {*kept.key.files, *newest.key.files}
