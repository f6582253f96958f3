import io
import logging
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from minetorch.checkpoint import Store
from minetorch.drawers import Curves, Drawers, TensorboardDrawer
from minetorch.drawers.event_files import SEGMENT_BYTES


class Run:
    """One start of a run, which need not come to its end."""

    def __init__(self, store):
        self.epoch = 0
        self.said = io.StringIO()
        logger = logging.Logger("test")
        logger.addHandler(logging.StreamHandler(self.said))
        self.board = TensorboardDrawer(interval_s=0)
        self.board._worker._error_rest_s = 0.05
        self.drawer = Drawers([self.board], store=store, code="run", current_x=lambda: self.epoch, logger=logger)

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
        """Write nothing more, as a killed process."""
        self.board._draw = lambda: None
        self.board._worker.finish(60)
        self.board._files._close_file()


def read(path):
    """Every point that TensorBoard shows, by tag."""
    if not Path(path).exists():
        return {}
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


def test_a_run_reads_back_under_its_code_alone(tmp_path, eventually):
    run = Run(Store.open(tmp_path / "runs").child("plan a"))
    run.epochs(1, 2)
    eventually(lambda: read(tmp_path / "runs/plan a"), expected(1, 2))  # while it runs
    run.epochs(3)
    run.drawer.close()
    everything = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "runs"))
    everything.Reload()
    assert list(everything.Runs()) == ["plan a"]
    assert read(tmp_path / "runs/plan a") == expected(1, 2, 3)


def test_killed_and_resumed_twice_every_point_is_there_once(tmp_path, eventually):
    store = Store.open(tmp_path / "run")
    first = Run(store)
    first.epochs(1, 2)
    saved = first.save()
    first.epochs(3, 4)
    eventually(lambda: read(tmp_path / "run"), expected(1, 2, 3, 4))
    first.kill()

    second = Run(store)
    second.resume(saved)
    eventually(lambda: read(tmp_path / "run"), expected(1, 2))
    second.epochs(3)
    saved = second.save()
    second.epochs(4, 5)
    eventually(lambda: read(tmp_path / "run"), expected(1, 2, 3, 4, 5))
    second.kill()

    third = Run(store)
    third.resume(saved)
    third.epochs(4, 5, 6)
    third.drawer.close()
    assert read(tmp_path / "run") == expected(1, 2, 3, 4, 5, 6)
    # The one before is empty; those before that are gone.
    sizes = [path.stat().st_size for path in sorted((tmp_path / "run").iterdir())]
    assert len(sizes) == 2
    assert sizes[0] == 0 < sizes[1]


def test_a_tensorboard_that_looks_on_forgets_what_was_rolled_back(tmp_path, eventually):
    store = Store.open(tmp_path / "run")
    first = Run(store)
    first.epochs(1)
    saved = first.save()
    first.epochs(2, 3)
    first.drawer.scalar(1, "gone")
    eventually(lambda: len(read(tmp_path / "run")), 4)
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


def fetched(store, tmp_path):
    """What TensorBoard shows of a remote run."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        for name in store.list():
            Path(folder, name).write_bytes(store.read(name))
        return read(folder)


def test_a_remote_run_is_uploaded_and_leaves_nothing_here(tmp_path, eventually):
    store = Store.open("memory://tensorboard").child("run")
    first = Run(store)
    first.epochs(1)
    eventually(lambda: fetched(store, tmp_path), expected(1))
    saved = first.save()
    first.epochs(2, 3)
    first.drawer.close()
    second = Run(store)
    second.resume(saved)
    eventually(lambda: fetched(store, tmp_path), expected(1))
    second.epochs(2)
    second.drawer.close()
    assert fetched(store, tmp_path) == expected(1, 2)
    assert list((tmp_path / "tmp").iterdir()) == []


class Counting:
    """A remote store that counts the bytes that are written to it, and can be made to fail."""

    is_local = False

    def __init__(self, store):
        self._store = store
        self.writes = []
        self.fails = False

    def __getattr__(self, name):
        return getattr(self._store, name)

    def write(self, name, data):
        if self.fails:
            raise OSError("no route to S3")
        self.writes.append((name, len(data)))
        self._store.write(name, data)


def test_nothing_new_is_uploaded_twice(tmp_path, eventually):
    store = Counting(Store.open("memory://tensorboard-twice"))
    run = Run(store)
    run.epochs(1)
    eventually(lambda: fetched(store, tmp_path), expected(1))
    before = len(store.writes)
    run.drawer.flush()
    run.drawer.close()
    assert len(store.writes) == before


def test_a_closed_segment_is_uploaded_once_and_the_rest_is_small(tmp_path):
    store = Counting(Store.open("memory://tensorboard-segments"))
    run = Run(store)
    steps, at_once = 30_000, 1000
    for x in range(steps):
        run.drawer.scalar(x, "loss", x=x)
        if x % at_once == 0:
            with run.board._worker._at_work:
                run.board._draw()
    run.drawer.close()
    assert [step for step, _ in fetched(store, tmp_path)["loss"]] == list(range(steps))
    segments = {name for name, _ in store.writes}
    assert len(segments) > 3
    total = sum(store.size(name) for name in segments)
    assert max(size for _, size in store.writes) < 2 * SEGMENT_BYTES
    for name in segments:
        # Each draws on from what is there: no write is made of what is closed, and none for nothing.
        sizes = [size for other, size in store.writes if other == name]
        assert sizes == sorted(set(sizes))
    assert sum(size for _, size in store.writes) < total + (steps / at_once + 40) * SEGMENT_BYTES


def test_a_storage_that_is_away_is_reported_once_and_caught_up_with(tmp_path, eventually):
    store = Counting(Store.open("memory://tensorboard-away"))
    run = Run(store)
    run.epochs(1)
    eventually(lambda: fetched(store, tmp_path), expected(1))
    store.fails = True
    run.epochs(2)

    def said():
        run.drawer.flush()
        return "no route to S3" in run.said.getvalue()

    eventually(said)
    run.epochs(3)
    run.drawer.close()
    store.fails = False
    run.epochs(4)
    run.drawer.close()
    assert fetched(store, tmp_path) == expected(1, 2, 3, 4)
    assert run.said.getvalue().count("\n") == 1


def shown_media(path):
    """Steps of images and histograms, by tag."""
    events = EventAccumulator(str(path), size_guidance={"images": 0, "histograms": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    steps = {tag: [event.step for event in events.Images(tag)] for tag in tags["images"]}
    return steps | {tag: [event.step for event in events.Histograms(tag)] for tag in tags["histograms"]}


@pytest.mark.parametrize("url", ["{}/run", "memory://tensorboard-media"])
def test_images_figures_and_histograms_from_before_the_checkpoint_outlive_a_resume(tmp_path, url):
    store = Store.open(url.format(tmp_path))

    def local():
        if store.is_local:
            return tmp_path / "run"
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        for name in store.list():
            (folder / name).write_bytes(store.read(name))
        return folder

    def epochs(run, *epochs):
        for run.epoch in epochs:
            run.epochs(run.epoch)
            run.drawer.image(torch.full((3, 8, 16), run.epoch / 10), "sample")
            figure = Figure(figsize=(2, 1), dpi=50)
            figure.add_subplot().plot([1, run.epoch])
            run.drawer.figure(figure, "plot")
            run.drawer.histogram(torch.randn(1000) + run.epoch, "weights")

    first = Run(store)
    epochs(first, 1, 2)
    saved = first.save()
    epochs(first, 3)
    first.drawer.close()
    assert shown_media(local()) == {tag: [1, 2, 3] for tag in ("sample", "plot", "weights")}
    for epoch in (3, 4):  # resumed twice from the same place
        run = Run(store)
        run.resume(saved)
        epochs(run, *range(3, epoch + 1))
        run.drawer.close()
    assert shown_media(local()) == {tag: [1, 2, 3, 4] for tag in ("sample", "plot", "weights")}
    assert read(local()) == expected(1, 2, 3, 4)
    events = EventAccumulator(str(local()))
    events.Reload()
    image = events.Images("sample")[0]
    assert (image.width, image.height) == (16, 8)
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert pixels.shape == (8, 16, 3)
    assert set(pixels.ravel()) == {26}
    assert (events.Images("plot")[0].width, events.Images("plot")[0].height) == (100, 50)
    histogram = events.Histograms("weights")[-1].histogram_value
    assert histogram.num == 1000
    assert 3.5 < histogram.sum / 1000 < 4.5


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


def test_a_broken_file_is_replaced(tmp_path, eventually, monkeypatch):
    run = Run(Store.open(tmp_path / "run"))
    run.epochs(1)
    eventually(lambda: read(tmp_path / "run"), expected(1))
    with run.board._worker._at_work:
        run.board._files._file.raw.close()  # as good as a disk that is gone
    run.epochs(2)
    run.epochs(3)
    run.drawer.close()
    assert read(tmp_path / "run") == expected(1, 2, 3), run.said.getvalue()


def test_tensorboard_is_imported_late_and_without_a_warning(tmp_path):
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
    done = subprocess.run([sys.executable, "-Werror", "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert len(list(Path(tmp_path).glob("events.*"))) == 1
