import io
import subprocess
import sys
import time

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from minetorch.drawers.picture import render

BLUE, VERMILLION = (0, 114, 178), (213, 94, 0)


def curve(y, x=None):
    return np.array([np.arange(len(y)) if x is None else x, y], dtype=float)


def decode(png):
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(int)


def coloured(pixels, colour):
    """Where the pixels have this colour, as (rows, columns), legend left out."""
    rows, columns = np.nonzero(np.abs(pixels - colour).sum(axis=2) < 30)
    below_legend = rows > 110
    return rows[below_legend], columns[below_legend]


def test_a_falling_curve_falls_across_the_whole_picture():
    pixels = decode(render("loss", {"train": curve(np.linspace(1, 0.1, 100))}, code="plan-a"))
    assert pixels.shape == (720, 1200, 3)
    rows, columns = coloured(pixels, BLUE)
    assert columns.min() < 200
    assert columns.max() > 1100
    assert rows[columns < 300].mean() < rows[columns > 1000].mean() - 300


def test_two_curves_have_two_colours():
    pixels = decode(render("loss", {"train": curve([1, 2]), "val": curve([2, 1])}))
    for colour in (BLUE, VERMILLION):
        assert coloured(pixels, colour)[0].size > 500


def test_a_single_point_is_visible():
    rows, columns = coloured(decode(render("loss", {"train": curve([0.5])})), BLUE)
    assert rows.size > 50
    assert np.ptp(rows) < 30
    assert 500 < columns.mean() < 800


def test_nan_is_a_gap_and_a_point_between_gaps_is_visible():
    y = np.ones(101)
    y[30:70] = np.nan
    y[50] = 1
    _, columns = coloured(decode(render("loss", {"train": curve(y)})), BLUE)
    left, right = columns.min(), columns.max()
    place = (columns - left) / (right - left)
    assert not np.any((place > 0.32) & (place < 0.47))
    assert np.any((place > 0.48) & (place < 0.52))


@pytest.mark.parametrize(
    "curves",
    [
        {},
        {"empty": curve([])},
        {"nan": curve([np.nan, np.inf])},
        {"_private": curve([1, 2]), "$x_1$": curve([2, 1]), "$": curve([1, 1]), "a{b}%s": curve([3, 3])},
        {"训练 😀": curve([1, 2])},
        {"huge": curve([1e300, -1e300]), "tiny": curve([1e-300, 2e-300])},
        {"flat": curve([0, 0, 0])},
        {"back": curve([1, 2, 3], [3, 1, 2])},
        {"far": curve([1, 2], [10**9, 10**9 + 1])},
        {"log": curve([1e-8, 1e-5, 1e3])},
        {f"layer {i} with a rather long name": curve([i, i + 1]) for i in range(40)},
        {"long " * 40: curve([1, 2])},
    ],
    ids=lambda curves: next(iter(curves), "none")[:10],
)
def test_awkward_curves_are_drawn_without_a_warning(curves):
    pixels = decode(render("$a_b$ 图" * 20, curves, x_name="step", code="x" * 200))
    assert pixels.shape[1] == 1200


def test_many_points_are_as_fast_as_a_few():
    rng = np.random.default_rng(0)
    few = {"train": curve(rng.random(1000)), "val": curve(rng.random(1000))}
    many = {"train": curve(rng.random(200_000)), "val": curve(rng.random(200_000))}
    render("loss", few)

    def best_of_three(curves):
        times = []
        for _ in range(3):
            start = time.process_time()
            render("loss", curves)
            times.append(time.process_time() - start)
        return min(times)

    assert best_of_three(many) < 4 * best_of_three(few)


def test_the_users_own_matplotlib_is_left_alone():
    before = dict(mpl.rcParams)
    render("loss", {"train": curve([1, 2])})
    assert dict(mpl.rcParams) == before


def test_matplotlib_is_imported_by_drawing_only():
    code = """
import sys
import minetorch.drawers
assert not any(name.split('.')[0] in ('matplotlib', 'PIL', 'tensorboard') for name in sys.modules)
from minetorch.drawers.picture import load_matplotlib, render
load_matplotlib()
before = set(sys.modules)
import numpy as np
render('损失', {'train': np.array([[0., 1.], [1., 1e5]])})
assert 'matplotlib.pyplot' not in sys.modules
late = sorted(name for name in set(sys.modules) - before if not name.startswith('minetorch'))
assert not late, late
"""
    subprocess.run([sys.executable, "-c", code], check=True)
