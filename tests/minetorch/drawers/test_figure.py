import io
import logging
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minetorch.checkpoint import Store
from minetorch.drawers import Curves, MatplotlibDrawer, make_drawers, painter
from minetorch.drawers.background import Worker
from minetorch.drawers.painter import NICENESS, PainterLostError
from minetorch.errors import ConfigurationError


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
        assert self.may_write.wait(90)
        if self.fails:
            self.wrote.release()
            raise OSError("disk full")
        self.written.append(name)
        self.wrote.release()

    def wait(self):
        assert self.wrote.acquire(timeout=90)


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


def test_another_process_paints_at_a_low_priority_and_without_torch(store, drawer, monkeypatch):
    seen = []

    def look(process, give_up):
        while "ft2font" not in (maps := Path(f"/proc/{process.pid}/maps").read_text()):
            assert process.poll() is None
            time.sleep(0.01)
        seen.append((os.getpriority(os.PRIO_PROCESS, process.pid), "libtorch" in maps))
        wait(process, give_up)

    wait = painter._wait
    monkeypatch.setattr(painter, "_wait", look)
    drawer.scalars({"train": 1.0}, "loss", 1)
    store.wait()
    drawer.close()
    assert seen == [(os.nice(0) + NICENESS, False)]
    assert store.written == ["graph/loss.png"]


def test_where_processes_die_this_one_paints_from_the_fourth_drawing_on(store, drawer, monkeypatch):
    drawer._worker._error_rest_s = 0.01
    monkeypatch.setattr(painter, "_START", "raise SystemExit(1)")
    drawer.scalars({"train": 1.0}, "loss", 1)
    errors = 0
    while not store.wrote.acquire(timeout=0.05):
        try:
            drawer.flush()
        except PainterLostError:
            errors += 1
    assert errors >= 3
    assert store.written == ["graph/loss.png"]


@pytest.mark.parametrize(("wall_s", "cpu_s", "rest_s"), [(0, 0.0, 3), (0, 0.2, 20), (0, 10, 60), (7, 0, 7)])
def test_after_a_drawing_comes_a_rest_that_is_longer_where_drawing_is_slow(wall_s, cpu_s, rest_s):
    assert Worker(lambda: None, interval_s=3)._rest_s(wall_s, cpu_s) == pytest.approx(rest_s)


def test_the_newest_image_is_a_file(store, drawer):
    for value in (0, 255):
        drawer.image(np.full((4, 6, 3), value, dtype=np.uint8), "sample", 1.0)
    drawer.close()
    assert set(store.written) == {"images/sample.png"}


def test_scales_and_names(tmp_path):
    def draw(**options):
        store = Store.open(tmp_path / f"{len(list(tmp_path.iterdir()))}")
        drawer = MatplotlibDrawer(**options)
        drawer.bind(store, "run")
        for x in (1, 2, 3):
            drawer.scalars({"train": x}, "loss", x)
        drawer.close()
        return pixels(store, "loss").tobytes()

    assert draw() == draw(scales={"loss": "auto"}) == draw(scales={"loss": "linear"}, y_names={"other": "s"})
    assert len({draw(), draw(scales={"loss": "log"}), draw(y_names={"loss": "nats per token"})}) == 3
    with pytest.raises(ConfigurationError, match="no scale 'logarithmic'"):
        MatplotlibDrawer(scales={"loss": "logarithmic"})


def test_the_threads_error_comes_with_the_next_flush_and_the_drawing_is_made_good(store, drawer):
    store.fails = True
    drawer.scalars({"train": 1.0}, "loss", 1)
    drawer.flush()
    store.wait()
    with pytest.raises(OSError, match="disk full"):
        flush_for_seconds(drawer, 60)
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


def test_nothing_is_painted_after_close_has_given_up(store, monkeypatch):
    """At the interpreter's end, a thread that is inside Matplotlib would abort the process."""
    began, ended = [], []

    def slow(graph, curves, **options):
        began.append(graph)
        threading.Event().wait(0.3)
        ended.append(graph)
        return b""

    monkeypatch.setattr("minetorch.drawers.picture.paint", slow)
    drawer = MatplotlibDrawer(interval_s=60)
    drawer.patience_s = 0.4
    drawer.bind(store, "run a")
    for number in range(9):
        drawer.scalars({"train": 1.0}, f"graph {number}", 1)
    with pytest.raises(TimeoutError, match=r"[5-8] of 9 pictures do not show the last state"):
        drawer.close()
    assert began == ended
    for thread in threading.enumerate():
        if thread.name == "minetorch-drawer":
            thread.join(30)
    assert began == ended == [f"graph {number}" for number in range(len(ended))]
    assert len(ended) < 5
    drawer.patience_s = 30
    drawer.scalars({"train": 1.0}, "graph 0", 2)
    drawer.close()
    assert set(store.written) == {f"graph/graph {number}.png" for number in range(9)}


@pytest.mark.slow
def test_a_script_that_ends_with_pictures_left_ends_well(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "from minetorch.checkpoint import Store\n"
        "from minetorch.drawers import MatplotlibDrawer\n"
        "drawer = MatplotlibDrawer(interval_s=60)\n"
        "drawer.patience_s = 1.5\n"
        "drawer.bind(Store.open('.'), 'run')\n"
        "for number in range(60):\n"
        "    drawer.scalars({'train': 1.0}, f'graph {number}', 1)\n"
        "try:\n"
        "    drawer.close()\n"
        "except TimeoutError as error:\n"
        "    print(error)\n"
    )
    for _ in range(4):
        done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "pictures do not show the last state" in done.stdout
