import io
import logging
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from minetorch.checkpoint import Store
from minetorch.drawers import Curves, TensorboardDrawer, make_drawers


class Run:
    """One start of a run, which need not come to its end."""

    def __init__(self, store):
        self.epoch = 0
        self.drawer = make_drawers(
            "tensorboard", store=store, code="run", current_x=lambda: self.epoch, logger=logging.getLogger("test")
        )

    def epochs(self, *epochs):
        for self.epoch in epochs:
            self.drawer.scalars({"train": self.epoch / 8, "val": self.epoch / 4}, "loss")
            self.drawer.scalar(self.epoch / 2, "accuracy")
            self.drawer.flush()

    def save(self):
        file = io.BytesIO()
        torch.save(self.drawer.state_dict(), file)
        return file.getvalue()

    def resume(self, saved):
        self.drawer.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))

    def kill(self):
        """Leave everything open, as a killed process does, and stop no thread's work from the disk."""
        self.drawer.drawers[0]._writer = None


def read(path):
    """Every point that TensorBoard shows, by tag."""
    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(*epochs):
    return {
        "loss/train": [(epoch, epoch / 8) for epoch in epochs],
        "loss/val": [(epoch, epoch / 4) for epoch in epochs],
        "accuracy": [(epoch, epoch / 2) for epoch in epochs],
    }


@pytest.fixture(autouse=True)
def _temporary_files_here(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


def test_a_run_reads_back_under_its_code_alone(tmp_path):
    run = Run(Store.open(tmp_path / "runs").child("plan a"))
    run.epochs(1, 2)
    assert read(tmp_path / "runs/plan a") == expected(1, 2)  # while it runs
    run.epochs(3)
    run.drawer.close()
    everything = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "runs"))
    everything.Reload()
    assert list(everything.Runs()) == ["plan a"]
    assert read(tmp_path / "runs/plan a") == expected(1, 2, 3)


def test_killed_and_resumed_twice_every_point_is_there_once(tmp_path):
    store = Store.open(tmp_path / "run")
    first = Run(store)
    first.epochs(1, 2)
    saved = first.save()
    first.epochs(3, 4)
    first.kill()

    second = Run(store)
    second.resume(saved)
    assert read(tmp_path / "run") == expected(1, 2)
    second.epochs(3)
    saved = second.save()
    second.epochs(4, 5)
    second.kill()

    third = Run(store)
    third.resume(saved)
    third.epochs(4, 5, 6)
    third.drawer.close()
    assert read(tmp_path / "run") == expected(1, 2, 3, 4, 5, 6)
    # The one before is empty; those before that are gone. Names within a second are not in order ("10" < "9").
    empty, full = sorted(path.stat().st_size for path in (tmp_path / "run").iterdir())
    assert empty == 0 < full


def test_a_tensorboard_that_looks_on_forgets_what_was_rolled_back(tmp_path):
    store = Store.open(tmp_path / "run")
    first = Run(store)
    first.epochs(1)
    saved = first.save()
    first.epochs(2, 3)
    first.drawer.scalar(1, "gone")
    first.drawer.flush()
    viewer = EventMultiplexer({"run": str(tmp_path / "run")}, size_guidance={"scalars": 0})
    viewer.Reload()
    assert [event.step for event in viewer.Scalars("run", "accuracy")] == [1, 2, 3]
    first.kill()
    second = Run(store)
    second.resume(saved)
    second.epochs(2)
    second.drawer.close()
    viewer.Reload()
    assert [event.step for event in viewer.Scalars("run", "accuracy")] == [1, 2]
    assert viewer.Scalars("run", "gone") == []


def test_a_start_from_scratch_replaces_what_was_there(tmp_path):
    store = Store.open(tmp_path / "run")
    first = Run(store)
    first.epochs(1, 2, 3)
    first.drawer.close()
    Run(store).drawer.close()
    assert read(tmp_path / "run") == expected(1, 2, 3)  # a run that draws nothing takes nothing away
    second = Run(store)
    second.epochs(1)
    second.drawer.close()
    assert read(tmp_path / "run") == expected(1)


def test_files_of_others_stay(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/events.out.tfevents.1.host.1.0").write_bytes(b"")
    run = Run(Store.open(tmp_path / "run"))
    run.epochs(1)
    run.drawer.close()
    assert (tmp_path / "run/events.out.tfevents.1.host.1.0").exists()


def test_a_remote_run_is_uploaded_and_leaves_nothing_here(tmp_path):
    store = Store.open("memory://tensorboard").child("run")

    def fetched():
        names = store.list()
        folder = tmp_path / f"fetched-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(store.read(name))
        assert sum(store.size(name) > 0 for name in names) == 1
        return read(folder)

    first = Run(store)
    first.epochs(1)
    assert fetched() == expected(1)
    saved = first.save()
    first.epochs(2, 3)
    first.drawer.close()
    second = Run(store)
    second.resume(saved)
    assert fetched() == expected(1)
    second.epochs(2)
    second.drawer.close()
    assert fetched() == expected(1, 2)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_nothing_new_is_uploaded_twice(monkeypatch):
    store = Store.open("memory://tensorboard-twice")
    uploads = []
    upload = store.upload
    monkeypatch.setattr(store, "upload", lambda path, name: (uploads.append(name), upload(path, name)))
    run = Run(store)
    run.epochs(1)
    before = len(uploads)
    run.drawer.flush()
    run.drawer.close()
    assert len(uploads) == before


def test_x_that_are_not_whole_become_thousandths(tmp_path):
    store = Store.open(tmp_path)
    drawer = TensorboardDrawer()
    drawer.bind(store, "run")
    drawer.scalars({"train": 1.0}, "loss", 1.0)
    drawer.scalars({"lr": 1.0}, "lr", 1.0)
    drawer.scalars({"train": 2.0, "val": 3.0}, "loss", 1.25)
    drawer.scalars({"train": 3.0}, "loss", 2.0)
    drawer.close()
    shown = {
        "loss/train": [(1000, 1), (1250, 2), (2000, 3)],
        "loss/val": [(1250, 3)],
        "lr": [(1, 1)],
    }
    assert read(tmp_path) == shown
    curves = Curves()
    for y, x in enumerate([1.0, 1.25, 2.0], start=1):
        curves.add("loss", "train", x, y)
    drawer.restore(curves)
    drawer.close()
    assert read(tmp_path) == {"loss/train": shown["loss/train"]}


def test_nan_and_thousands_of_points(tmp_path):
    drawer = TensorboardDrawer()
    drawer.bind(Store.open(tmp_path), "run")
    for x in range(5000):
        drawer.scalars({"train": math.nan if x == 7 else x}, "loss", float(x))
    drawer.close()
    points = read(tmp_path)["loss/train"]
    assert [step for step, _ in points] == list(range(5000))
    assert math.isnan(points[7][1])


def test_a_broken_writer_is_replaced(tmp_path, monkeypatch):
    run = Run(Store.open(tmp_path / "run"))
    run.epochs(1)
    monkeypatch.setattr(run.drawer.drawers[0]._writer, "add_scalar", lambda *a: (_ for _ in ()).throw(OSError("full")))
    run.epochs(2)
    run.epochs(3)
    run.drawer.close()
    assert read(tmp_path / "run") == expected(1, 2, 3)


@pytest.mark.parametrize("flag", ["-Werror", "-Wdefault"])
def test_tensorboard_is_imported_late_and_without_a_warning(flag, tmp_path):
    code = f"""
import sys
from minetorch.drawers import TensorboardDrawer
from minetorch.checkpoint import Store
drawer = TensorboardDrawer()
drawer.bind(Store.open({str(tmp_path)!r}), "run")
assert "tensorboard" not in sys.modules
drawer.scalars({{"train": 1.0}}, "loss", 1.0)
drawer.close()
"""
    done = subprocess.run([sys.executable, flag, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert len(list(Path(tmp_path).glob("events.*"))) == 1
