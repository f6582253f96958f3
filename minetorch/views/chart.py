"""One graph as what a page needs to show it: lines in a square of 1000 by 1000, and where its ticks are. Pure.

The page stretches the square to any size and sets the letters beside it, so that they are readable on a phone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from minetorch.drawers.reading import are_whole, best_point, better, wants_log_scale
from minetorch.drawers.thin import Thin, isolated, thin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

COLOURS = 7
"""How many the page's style has."""
_SIDE = 1000.0
_MARGIN = 0.04
_LARGEST = 1e300  # what is beyond is drawn there: the distance between the largest floats is not a float
_MOST_DOTS = 40


@dataclass(frozen=True)
class Tick:
    """A mark of an axis."""

    percent: float
    """Of the way from the left, or from the top."""
    text: str


@dataclass(frozen=True)
class Line:
    """One curve."""

    name: str
    colour: int
    """Below `COLOURS`."""
    dashed: bool
    """Whether the colour stands for another curve, too."""
    path: str
    """Of an SVG."""
    band: str
    """Path around the range of the points that each point of the line stands for; "" where it stands for itself."""
    dots: Sequence[tuple[float, float]]
    """Points to show as dots, in percent from the left and from the top."""
    note: str
    """Its best or last figure."""
    points: int
    """How many points the curve has."""


@dataclass(frozen=True)
class Chart:
    """A graph to show."""

    name: str
    x_name: str
    y_note: str
    """"log scale", or nothing."""
    lines: Sequence[Line]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    resumes: Sequence[float]
    """Where the run was resumed, in percent from the left."""
    points: int
    hover: Mapping[str, Any]
    """What the page's script needs to tell the figures under the pointer: plain values, fit for JSON."""


def make_chart(name: str, x_name: str, curves: Mapping[str, Floats], resumes: Sequence[float] = ()) -> Chart:
    """Lay out a graph of any number of points.

    Args:
        name: the graph's, which tells whether low or high is good.
        x_name: what x counts.
        curves: by name, each of shape (2, points); NaN and infinite y are gaps.
        resumes: the x at which the run was resumed.
    """
    thinned = {curve: thin(points) for curve, points in curves.items()}
    log = _is_log(name, list(thinned.values()))
    x_axis = _Axis.around([one.x for one in thinned.values()], log=False)
    tips = [y for one in thinned.values() for y in (one.y, *(() if log else _band(one)))]
    y_axis = _Axis.around(tips, log=log)
    lines = [
        _line(index, name, curve, one, points, x_axis, y_axis)
        for index, ((curve, one), points) in enumerate(zip(thinned.items(), curves.values(), strict=True))
    ]
    places = x_axis.place(np.array([x for x in resumes if x_axis.low <= x <= x_axis.high], dtype=np.float64))
    return Chart(
        name=name,
        x_name=x_name,
        y_note="log scale" if log else "",
        lines=lines,
        x_ticks=x_axis.ticks(7, whole=are_whole([one.line for one in thinned.values()])),
        y_ticks=[Tick(100 - tick.percent, tick.text) for tick in y_axis.ticks(5, whole=False)],
        resumes=[100 * float(place) for place in places],
        points=sum(points.shape[1] for points in curves.values()),
        hover={
            "low": x_axis.low,
            "high": x_axis.high,
            "x": x_name,
            "curves": [_hover(curve, one, y_axis) for curve, one in thinned.items()],
        },
    )


@dataclass(frozen=True)
class _Axis:
    """The part of an axis that is shown; on a log scale, both ends are logarithms to base 10."""

    low: float
    high: float
    log: bool

    @classmethod
    def around(cls, values: Sequence[Floats], *, log: bool) -> _Axis:
        flat = np.concatenate([*values, np.empty(0)])
        flat = np.clip(flat[np.isfinite(flat)], -_LARGEST, _LARGEST)
        if log:
            flat = np.log10(flat[flat > 0])
        if flat.size == 0:
            return cls(0.0, 1.0, False)
        low, high = float(flat.min()), float(flat.max())
        margin = (high - low) * _MARGIN
        if margin <= abs(high) * 1e-12:
            margin = abs(high) * 0.1 or 1.0
        return cls(low - margin, high + margin, log)

    def place(self, values: Floats) -> Floats:
        """Where values are, as parts of the way from its beginning."""
        with np.errstate(invalid="ignore", divide="ignore"):
            values = np.log10(np.where(values > 0, values, np.nan)) if self.log else values
            return (np.clip(values, -_LARGEST, _LARGEST) - self.low) / (self.high - self.low)

    def ticks(self, most: int, *, whole: bool) -> list[Tick]:
        from matplotlib.ticker import MaxNLocator

        if self.log:
            powers = range(max(math.ceil(self.low), -307), min(math.floor(self.high), 308) + 1)
            values = [10.0**power for power in powers[:: -(-len(powers) // most)]]
        else:
            locator = MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10], integer=whole, min_n_ticks=1)
            values = [value for value in locator.tick_values(self.low, self.high) if self.low <= value <= self.high]
        places = self.place(np.array(values, dtype=np.float64))
        return [Tick(100 * float(p), _figure(value)) for value, p in zip(values, places, strict=True)]


def _is_log(graph: str, curves: Sequence[Thin]) -> bool:
    positive = not any(np.any(low <= 0) for one in curves for low in _band(one)[:1])
    return positive and wants_log_scale([one.line for one in curves], better(graph, graph))


def _band(one: Thin) -> tuple[Floats, ...]:
    return () if one.low is None or one.high is None else (one.low, one.high)


def _line(index: int, graph: str, name: str, one: Thin, points: Floats, x_axis: _Axis, y_axis: _Axis) -> Line:
    x, y = x_axis.place(one.x), 1 - y_axis.place(one.y)
    shown = np.isfinite(y) if one.x.size <= _MOST_DOTS else isolated(y)
    return Line(
        name=name,
        colour=index % COLOURS,
        dashed=index // COLOURS % 2 == 1,
        path=_path(x, y),
        band=_band_path(x, [1 - y_axis.place(tip) for tip in _band(one)]),
        dots=[(100 * float(a), 100 * float(b)) for a, b in zip(x[shown], y[shown], strict=True)],
        note=_note(graph, name, one),
        points=points.shape[1],
    )


def _note(graph: str, name: str, one: Thin) -> str:
    """As in the drawers' pictures."""
    finite = one.y[np.isfinite(one.y)]
    best = best_point(one.line, better(graph, name))
    parts = [f"best {best[1]:.4g} at {best[0]:,.10g}"] if best is not None else []
    if finite.size:
        parts.append(f"last {finite[-1]:.4g}")
    if one.lost:
        parts.append(f"{one.lost:,} not finite")
    return ", ".join(parts)


def _path(x: Floats, y: Floats) -> str:
    """Of the line, with a gap where y is none."""
    words, pen_down = [], False
    for at_x, at_y in zip(x, y, strict=True):
        if not np.isfinite(at_y):
            pen_down = False
            continue
        words.append(f"{'L' if pen_down else 'M'}{_SIDE * at_x:.1f} {_SIDE * at_y:.1f}")
        pen_down = True
    return "".join(words)


def _band_path(x: Floats, tips: Sequence[Floats]) -> str:
    if not tips:
        return ""
    low, high = (np.clip(tip, 0, 1) for tip in tips)
    # On a log scale what is not above zero is at the bottom.
    low = np.where(np.isnan(low) & ~np.isnan(high), 1.0, low)
    there = np.isfinite(low) & np.isfinite(high)
    corners = [*zip(x[there], high[there], strict=True), *reversed([*zip(x[there], low[there], strict=True)])]
    return "M" + "L".join(f"{_SIDE * a:.1f} {_SIDE * b:.1f}" for a, b in corners) + "Z" if corners else ""


def _hover(name: str, one: Thin, y_axis: _Axis) -> dict[str, Any]:
    there = np.isfinite(one.y)
    heights = 100 * (1 - y_axis.place(one.y[there]))
    return {
        "name": name,
        "x": one.x[there].tolist(),
        "y": [_figure(value) for value in one.y[there]],
        "top": [round(float(top), 2) for top in np.nan_to_num(heights, nan=100.0)],
    }


def _figure(value: float) -> str:
    text = f"{value:,.5g}"
    return f"{value:,.0f}" if "e" in text and value == round(value) and abs(value) < 1e9 else text
