import io
import logging
import math
import threading

import numpy as np
import pytest
from PIL import Image

from minetorch.checkpoint import Store
from minetorch.drawers import Curves, MatplotlibDrawer, make_drawers


def pixels(store, graph):
    image = Image.open(io.BytesIO(store.read(f"graph/{graph}.png")))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def is_drawing():
    return any(thread.name == "minetorch-drawer" for thread in threading.enumerate())


def flush_for_seconds(drawer, seconds):
    for _ in range(100 * seconds):
        drawer.flush()
        threading.Event().wait(0.01)


class Watched:
    """A store that says when it was written to, and can be made to fail or to wait."""

    is_local = True

    def __init__(self):
        self.written = []
        self.wrote = threading.Semaphore(0)
        self.may_write = threading.Event()
        self.may_write.set()
        self.fails = False

    def write(self, name, data):
        assert self.may_write.wait(10)
        if self.fails:
            self.wrote.release()
            raise OSError("disk full")
        self.written.append(name)
        self.wrote.release()

    def wait(self):
        assert self.wrote.acquire(timeout=20)


@pytest.fixture
def store():
    return Watched()


@pytest.fixture
def drawer(store):
    drawer = MatplotlibDrawer(interval_s=0)
    drawer.bind(store, "run a")
    yield drawer
    store.may_write.set()
    store.fails = False
    drawer.close()
    assert not is_drawing()


@pytest.mark.parametrize("url", ["{}/ugly päth", "memory://figure/run"])
def test_close_draws_every_graph_on_any_storage(url, tmp_path):
    store = Store.open(url.format(tmp_path))
    drawers = make_drawers(
        "matplotlib", store=store, code="run", current_x=lambda: 1, logger=logging.Logger("test", logging.DEBUG)
    )
    drawers.scalars({"train": 0.5, "val": math.nan}, "loss")
    drawers.scalar(0.9, "准确率 top 1")
    drawers.close()
    assert pixels(store, "loss").shape == (720, 1200, 3)
    assert pixels(store, "准确率 top 1").shape == (720, 1200, 3)
    assert not is_drawing()


def test_flush_draws_in_the_background_only_what_changed(store, drawer):
    drawer.flush()
    assert not is_drawing()
    drawer.scalars({"train": 1.0}, "loss", 1)
    drawer.scalars({"accuracy": 1.0}, "accuracy", 1)
    store.may_write.clear()
    drawer.flush()  # returns although nothing can be written yet
    store.may_write.set()
    store.wait()
    store.wait()
    assert store.written == ["graph/accuracy.png", "graph/loss.png"]
    drawer.scalars({"train": 0.5}, "loss", 2)
    drawer.flush()
    store.wait()
    drawer.flush()
    drawer.close()
    assert store.written == ["graph/accuracy.png", "graph/loss.png", "graph/loss.png"]


def test_points_after_the_last_flush_are_drawn_by_close(store, drawer):
    drawer.scalars({"train": 1.0}, "loss", 1)
    drawer.close()
    assert store.written == ["graph/loss.png"]
    drawer.scalars({"train": 1.0}, "loss", 2)  # a second training with the same drawer
    drawer.flush()
    store.wait()
    drawer.close()
    assert set(store.written) == {"graph/loss.png"}


def test_the_threads_error_comes_with_the_next_flush_and_the_drawing_is_made_good(store, drawer):
    store.fails = True
    drawer.scalars({"train": 1.0}, "loss", 1)
    drawer.flush()
    store.wait()
    with pytest.raises(OSError, match="disk full"):
        flush_for_seconds(drawer, 10)
    store.fails = False
    drawer.close()
    assert store.written[-1] == "graph/loss.png"


def test_close_raises_its_own_error_only(store, drawer):
    store.fails = True
    drawer.scalars({"train": 1.0}, "loss", 1)
    with pytest.raises(OSError, match="disk full"):
        drawer.close()
    store.fails = False
    drawer.close()
    assert store.written == ["graph/loss.png"]


def test_restore_draws_the_record_and_forgets_the_rest(tmp_path):
    def draw(path, xs, restored=()):
        store = Store.open(path)
        drawer = MatplotlibDrawer()
        drawer.bind(store, "run")
        if restored:
            drawer.scalars({"train": 100.0}, "loss", 50)
            drawer.scalars({"other": 1.0}, "other", 1)
            curves = Curves()
            for x in restored:
                curves.add("loss", "train", x, 1 / x)
            drawer.restore(curves)
            curves.add("loss", "train", 77, 77)
        for x in xs:
            drawer.scalars({"train": 1 / x}, "loss", x)
        drawer.close()
        return store

    whole = draw(tmp_path / "whole", [1, 2, 3, 4])
    resumed = draw(tmp_path / "resumed", [3, 4], restored=[1, 2])
    np.testing.assert_array_equal(pixels(whole, "loss"), pixels(resumed, "loss"))
    assert resumed.child("graph").list() == ["loss.png"]


def test_the_x_axis_is_named(tmp_path):
    def draw(name):
        store = Store.open(tmp_path / name)
        drawer = MatplotlibDrawer()
        drawer.bind(store, "run")
        drawer.scalars({"train": 1.0}, "loss", 1)
        drawer.name_x("loss", name)
        drawer.close()
        return pixels(store, "loss")

    assert not np.array_equal(draw("epoch"), draw("step"))
