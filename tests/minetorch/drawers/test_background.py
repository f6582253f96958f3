import threading

import pytest

from minetorch.checkpoint import Store
from minetorch.drawers import Curves
from minetorch.drawers.background import REMOTE_INTERVAL_S, BackgroundDrawer, Worker


class Counting(BackgroundDrawer):
    """Counts the points that it is given to draw."""

    def __init__(self, interval_s=0):
        super().__init__(interval_s)
        self.counts = {}
        self.handled = 0
        self.before = lambda: None

    def _draw(self):
        self.before()
        for one in self._news(self._record, self.counts):
            self.handled += one.points.shape[1]
            self.counts[one.graph, one.curve] = one.first + one.points.shape[1]


def test_the_work_of_a_drawing_is_that_of_what_is_new(tmp_path):
    drawer = Counting()
    drawer.bind(Store.open(tmp_path), "run")
    for x in range(20_000):
        drawer.scalars({"train": 1.0, "val": 2.0}, "loss", x)
    drawer.close()
    for x in range(100):
        drawer.scalars({"train": 1.0}, "loss", x)
        drawer.close()
    assert drawer.handled == 40_100


def test_drawing_waits_for_nothing_that_the_thread_waits_for(tmp_path):
    drawer, stuck = Counting(), threading.Event()
    drawer.bind(Store.open(tmp_path), "run")
    drawer.before = lambda: stuck.wait(60)
    for x in range(1000):
        drawer.scalars({"train": 1.0}, "loss", x)
        drawer.flush()
    drawer.restore(Curves())
    assert drawer.handled == 0
    drawer.patience_s = 0.01
    with pytest.raises(TimeoutError, match="it was not done after"):
        drawer.close()
    stuck.set()
    drawer.patience_s = 60
    drawer.scalars({"train": 1.0}, "loss", 1)
    drawer.close()
    assert sum(drawer.counts.values()) >= 1


def test_what_fails_is_tried_again_without_being_asked():
    tries, done = [], threading.Event()

    def job():
        tries.append(1)
        if len(tries) < 4:
            raise OSError(28, "No space left on device")
        done.set()

    worker = Worker(job, interval_s=0, error_rest_s=0)
    worker.ask()
    assert done.wait(60)
    with pytest.raises(OSError, match="No space left"):
        worker.raise_error()
    worker.raise_error()
    worker.finish(60)
    assert len(tries) == 4


def test_a_remote_run_is_drawn_less_often(tmp_path):
    for url, interval_s, expected in (
        (str(tmp_path), 3, 3),
        ("memory://run", 3, REMOTE_INTERVAL_S),
        ("memory://run", 30, 30),
        ("memory://run", 0, 0),
    ):
        drawer = Counting(interval_s)
        drawer.bind(Store.open(url), "run")
        assert drawer._worker.interval_s == expected
