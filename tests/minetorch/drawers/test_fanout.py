import io
import logging
import math

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from minetorch.checkpoint import Store
from minetorch.drawers import Curves, Drawer, Drawers, SilentDrawers
from minetorch.errors import ConfigurationError


class Recording(Drawer):
    """Keeps its view as a real drawer would, and fails where it is told to."""

    def __init__(self, failing=()):
        self.failing = set(failing)
        self.calls = []
        self.view = []

    def __call__(self, method):
        self.calls.append(method)
        if method in self.failing:
            raise OSError(f"no {method}")

    def bind(self, store, code):
        self("bind")
        self.place = store, code

    def scalars(self, values, graph, x):
        self("scalars")
        self.view += [(graph, name, x, y) for name, y in values.items()]

    def restore(self, curves):
        self("restore")
        self.view = list(curves.points())

    def name_x(self, graph, name):
        self("name_x")
        self.x_name = name

    def flush(self):
        self("flush")

    def close(self):
        self("close")


class Run:
    """Drawers with everything around them."""

    def __init__(self, path, *drawers):
        self.epoch = 1
        self.said = io.StringIO()
        self.store = Store.open(path)
        logger = logging.Logger("test")
        logger.addHandler(logging.StreamHandler(self.said))
        self.drawer = Drawers(drawers, store=self.store, code="run a", current_x=lambda: self.epoch, logger=logger)


def test_every_drawer_gets_every_point_as_floats(tmp_path):
    one, two = Recording(), Recording()
    run = Run(tmp_path, one, two)
    run.drawer.scalars({"train": torch.tensor(0.5, requires_grad=True), "val": math.nan}, "loss")
    run.epoch = 2
    run.drawer.scalar(1, "accuracy")
    run.drawer.scalar(2, "accuracy", x=2.5)
    assert one.place == (run.store, "run a")
    assert str(one.view) == str(two.view)
    assert str(one.view) == str([
        ("loss", "train", 1.0, 0.5),
        ("loss", "val", 1.0, math.nan),
        ("accuracy", "accuracy", 2.0, 1.0),
        ("accuracy", "accuracy", 2.5, 2.0),
    ])  # fmt: skip
    assert str(sorted(run.drawer.curves.points())) == str(sorted(one.view))
    run.drawer.flush()
    run.drawer.close()
    assert one.calls == ["bind", "scalars", "scalars", "scalars", "flush", "close"]


def test_a_resumed_run_has_each_point_once(tmp_path):
    first = Run(tmp_path, Recording())
    for first.epoch in (1, 2, 3):
        first.drawer.scalar(first.epoch / 10, "loss")
        if first.epoch == 2:
            saved = io.BytesIO()
            torch.save(first.drawer.state_dict(), saved)
    saved.seek(0)

    drawer = Recording()
    second = Run(tmp_path, drawer)
    second.drawer.load_state_dict(torch.load(saved, weights_only=True))
    for second.epoch in (3, 4):
        second.drawer.scalar(second.epoch / 10, "loss")
    assert [(x, y) for _, _, x, y in drawer.view] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]


def test_a_wrong_call_changes_nothing(tmp_path):
    drawer = Recording()
    run = Run(tmp_path, drawer)
    for call in (
        lambda: run.drawer.scalar("x", "loss"),
        lambda: run.drawer.scalars({"train": 0.5, "val": [1]}, "loss"),
        lambda: run.drawer.scalar(0.5, "../loss"),
        lambda: run.drawer.scalar(0.5, "loss", x=math.nan),
        lambda: run.drawer.scalar(0.5, ["loss"]),
    ):
        with pytest.raises(ConfigurationError):
            call()
    run.drawer.scalars({}, "loss")
    assert drawer.calls == ["bind"]
    assert len(run.drawer.curves) == 0
    assert run.said.getvalue() == ""


def test_a_failing_drawer_is_reported_once_tried_again_and_brought_up_to_date(tmp_path):
    bad, good = Recording(failing=["scalars", "flush"]), Recording()
    run = Run(tmp_path, bad, good)
    for run.epoch in (1, 2):
        run.drawer.scalar(run.epoch, "loss")
        run.drawer.flush()
    assert bad.calls.count("scalars") == 2
    assert run.said.getvalue().splitlines() == [
        f"Recording.{method} failed: OSError: no {method}. Training goes on; the drawer is tried again, "
        "and this is said only once."
        for method in ("scalars", "flush")
    ]
    bad.failing.clear()
    run.epoch = 3
    run.drawer.scalar(3, "loss")
    run.drawer.flush()
    run.drawer.flush()
    assert bad.view == good.view
    assert len(good.view) == 3
    assert bad.calls[-3:] == ["scalars", "flush", "flush"]  # restored after the first failure: behind no more


def test_a_drawer_that_cannot_be_bound_yet_catches_up(tmp_path):
    drawer = Recording(failing=["bind"])
    run = Run(tmp_path, drawer)
    run.drawer.scalar(1, "loss")
    assert "Recording.bind failed: OSError: no bind" in run.said.getvalue()
    assert "scalars" not in drawer.calls
    drawer.failing.clear()
    run.drawer.close()
    assert drawer.view == [("loss", "loss", 1, 1)]
    assert drawer.calls[-2:] == ["restore", "close"]


def test_a_failed_restore_is_made_good(tmp_path):
    drawer = Recording(failing=["restore"])
    run = Run(tmp_path, drawer)
    curves = Curves()
    curves.add("loss", "train", 1, 0.5)
    run.drawer.restore(curves)
    assert drawer.view == []
    drawer.failing.clear()
    run.drawer.flush()
    assert drawer.view == [("loss", "train", 1, 0.5)]


def test_a_drawer_that_can_never_work_is_an_error_at_once(tmp_path):
    class Impossible(Recording):
        def bind(self, store, code):
            raise ConfigurationError("no such database")

    with pytest.raises(ConfigurationError, match="no such database"):
        Run(tmp_path, Impossible())


def test_an_object_with_scalars_alone_is_a_drawer(tmp_path):
    class Bare:
        points = 0

        def scalars(self, values, graph, x):
            self.points += len(values)

    bare = Bare()
    run = Run(tmp_path, bare)
    run.drawer.scalars({"a": 1, "b": 2}, "loss")
    run.drawer.load_state_dict(run.drawer.state_dict())
    run.drawer.flush()
    run.drawer.close()
    assert bare.points == 2
    assert run.drawer.drawers == (bare,)
    assert run.said.getvalue() == ""


@pytest.mark.parametrize(
    ("xs", "name"),
    [
        ([None, None], "epoch"),
        ([1, 1.5, 2], "epoch"),  # parts of epoch 1
        ([0, 1, 2, 3], "step"),
        ([1000, 2000], "step"),
        ([0.1, 7.5], "x"),
        ([5, 7.5], "x"),
    ],
)
def test_x_is_called_epoch_only_where_it_can_be_one(tmp_path, xs, name):
    drawer = Recording()
    run = Run(tmp_path, drawer)
    for x in xs:
        run.drawer.scalar(1, "loss", x=x)
    assert run.drawer.curves.x_name("loss") == name
    assert getattr(drawer, "x_name", "epoch") == name


class Showing(Recording):
    """Takes pictures and histograms as well, and marks."""

    def __init__(self, failing=()):
        super().__init__(failing)
        self.shown = []

    def image(self, pixels, name, x):
        self("image")
        self.shown.append((name, pixels.shape, pixels.dtype.name, x))

    def histogram(self, values, name, x):
        self.shown.append((name, values.tolist(), x))

    def mark(self, mark):
        self.shown.append(mark[:3])


def test_pictures_figures_and_histograms_go_to_those_that_can_show_them(tmp_path):
    showing, plain = Showing(), Recording()
    run = Run(tmp_path, plain, showing)
    run.drawer.image(torch.zeros(3, 4, 6), "sample")
    run.drawer.image(Image.new("RGBA", (6, 4)), "sample", x=7)
    figure = Figure(figsize=(2, 1), dpi=30)
    canvas = figure.canvas
    run.drawer.figure(figure, "plot")
    assert figure.canvas is canvas
    run.drawer.histogram(torch.tensor([1.0, math.nan, 3.0]), "weights")
    run.drawer.histogram([math.nan], "weights")
    assert showing.shown == [
        ("sample", (4, 6, 3), "uint8", 1),
        ("sample", (4, 6, 3), "uint8", 7),
        ("plot", (30, 60, 3), "uint8", 1),
        ("weights", [1.0, 3.0], 1),
    ]
    assert plain.calls == ["bind"]
    assert run.drawer.curves.media == 4
    assert run.said.getvalue() == ""


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda drawer: drawer.image(torch.zeros(2, 3, 4, 5), "a"), "image 'a' must be a tensor .* not shape"),
        (lambda drawer: drawer.image("a.png", "a"), "image 'a' must be"),
        (lambda drawer: drawer.figure(3, "a"), "figure 'a' must be a matplotlib.figure.Figure, not int"),
        (lambda drawer: drawer.histogram(["x"], "a"), "histogram 'a' must be of numbers"),
        (lambda drawer: drawer.histogram([[1], [2, 3]], "a"), "no numbers of one shape"),
        (lambda drawer: drawer.histogram([1], "a/b"), "cannot name a graph"),
    ],
)
def test_what_cannot_be_shown(tmp_path, draw, said):
    drawer = Showing()
    with pytest.raises(ConfigurationError, match=said):
        draw(Run(tmp_path, drawer).drawer)
    assert drawer.shown == []


def test_a_picture_that_fails_is_reported_and_not_made_good(tmp_path):
    drawer = Showing(failing=["image"])
    run = Run(tmp_path, drawer)
    run.drawer.image(torch.zeros(4, 4), "sample")
    run.drawer.flush()
    assert "Showing.image failed: OSError: no image" in run.said.getvalue()
    assert "restore" not in drawer.calls


def test_marks_are_part_of_the_record(tmp_path):
    drawer = Showing()
    first = Run(tmp_path, drawer)
    first.drawer.mark("resume", 2.5, 20)
    saved = io.BytesIO()
    torch.save(first.drawer.state_dict(), saved)
    saved.seek(0)
    second = Run(tmp_path, Showing())
    second.drawer.load_state_dict(torch.load(saved, weights_only=True))
    second.drawer.mark("resume", 4, 40)
    marks = second.drawer.curves.marks
    assert drawer.shown == [("resume", 2.5, 20)]
    assert [mark[:3] for mark in marks] == [("resume", 2.5, 20), ("resume", 4, 40)]
    assert [(mark.x("epoch"), mark.x("step"), mark.x("x")) for mark in marks] == [(2.5, 20, None), (4, 40, None)]


def test_each_distinct_trouble_is_reported_once(tmp_path):
    class Troubled(Recording):
        def scalars(self, values, graph, x):
            kinds = [OSError(28, "No space left on device"), ConnectionError(f"request {x:.0f} was refused")]
            raise kinds[int(x) % 2]

    run = Run(tmp_path, Troubled())
    for x in range(10):
        run.drawer.scalar(1, "loss", x=x)
    lines = run.said.getvalue().splitlines()
    assert len(lines) == 2
    assert "No space left on device" in lines[0]
    assert "request 1 was refused" in lines[1]


def test_the_record_costs_a_save_no_more_than_its_bytes(tmp_path):
    """Arrays, and few: what a save copies of 100,000 points is counted in objects, not in points."""
    run = Run(tmp_path)

    def objects(points):
        while len(run.drawer.curves) < points:
            run.drawer.scalar(1, "loss", x=len(run.drawer.curves))
        state = run.drawer.state_dict()
        tensors = [curve for curves in state["graphs"].values() for curve in curves.values()]
        assert [tensor.shape for tensor in tensors] == [(2, points)]
        return sum(1 for _ in walk(state))

    def walk(value):
        yield value
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from walk(inner)

    assert objects(10) == objects(100_000) < 20


def test_silent_drawers_look_at_nothing():
    silent = SilentDrawers()
    silent.scalar(object(), "../x")
    silent.scalars(None, "loss", x=None)
    silent.flush()
    silent.load_state_dict({"graphs": {"loss": {"train": torch.zeros(2, 3)}}})
    silent.restore(Curves())
    silent.image(object(), "../x")
    silent.figure(object(), "../x")
    silent.histogram(object(), "../x")
    silent.mark("resume", 1, 1)
    silent.close()
    assert silent.drawers == ()
    assert silent.state_dict() == Curves().state_dict()
    surface = {name for name in dir(Drawers) if not name.startswith("_")}
    assert surface <= set(dir(silent))
