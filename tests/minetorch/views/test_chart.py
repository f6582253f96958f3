"""Any curve becomes lines within the square, and ticks within the axis."""

import re

import numpy as np
import pytest

from minetorch.views.chart import make_chart
from minetorch.views.page import _source

NAN, INF = float("nan"), float("inf")


def numbers(path):
    return [float(word) for word in re.findall(r"-?[\d.]+", path)]


@pytest.mark.parametrize(
    "y",
    [[], [1.0], [2.0, 2.0], [NAN, NAN], [1.0, NAN, 3.0], [INF, 1.0, -INF], [1e308, -1e308], [1e-300, 1e300],
     [0, 5e-324], [1e-4, 0.1, 30.0], [-1.0, 1.0], [1e20, 1e20 + 1e5]],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_odd_curves_stay_in_the_square(y):
    points = np.array([np.arange(len(y), dtype=float), y], dtype=float)
    chart = make_chart("loss", "epoch", {"train": points}, [1.0, 50.0])
    (line,) = chart.lines
    assert all(-1 <= number <= 1001 for number in numbers(line.path)), line.path
    assert all(-0.01 <= tick.percent <= 100.01 for tick in [*chart.x_ticks, *chart.y_ticks])
    assert chart.x_ticks
    assert len(chart.resumes) <= 1
    assert len(chart.hover["curves"][0]["x"]) == np.count_nonzero(np.isfinite(points[1]))
    assert "nan" not in line.path


def test_a_gap_is_a_gap_and_a_point_alone_a_dot():
    y = np.ones(100)
    y[50], y[97], y[99] = NAN, NAN, NAN
    (line,) = make_chart("g", "step", {"g": np.array([np.arange(100.0), y])}).lines
    assert line.path.count("M") == 3
    assert len(line.dots) == 1
    assert line.points == 100
    assert "3 not finite" in line.note


def test_a_long_curve_is_a_line_and_a_band():
    x = np.arange(100_000.0)
    chart = make_chart("reward", "step", {"a": np.array([x, np.sin(x)])})
    (line,) = chart.lines
    assert line.points == chart.points == 100_000
    assert line.band.endswith("Z")
    assert all(0 <= number <= 1000 for number in numbers(line.band))
    assert len(line.path) < 20_000


def test_a_wide_range_of_a_loss_is_on_a_log_scale():
    chart = make_chart("loss", "epoch", {"a": np.array([[1.0, 2, 3], [10.0, 1e-3, 1e-4]])})
    assert chart.y_note == "log scale"
    assert [tick.text for tick in chart.y_ticks] == ["0.0001", "0.01", "1"]
    assert chart.y_ticks[0].percent > chart.y_ticks[-1].percent


def luminance(colour):
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_letters_and_lines_stand_out_from_their_ground_in_both_schemes():
    """Ratios as WCAG 2.1 asks for: 4.5 for text, 3 for lines (https://www.w3.org/TR/WCAG21/#contrast-minimum)."""
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in _source("style.css").split("@media", 2)[:2])
    assert set(light) == set(dark)
    for scheme in (light, dark):
        for name in set(scheme) - {"page", "card", "line"}:
            for ground in ("page", "card"):
                bright, dim = sorted((luminance(scheme[name]), luminance(scheme[ground])), reverse=True)
                ratio = (bright + 0.05) / (dim + 0.05)
                assert ratio >= (3 if re.fullmatch(r"c\d", name) else 4.5), (name, ground, ratio)
