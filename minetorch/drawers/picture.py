"""One graph as a PNG, drawn with Matplotlib.

Never pyplot, never rcParams: where no process of their own can be had, pictures are made on a thread, while a
user's notebook may be drawing with both.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from minetorch.drawers.lettering import families, printable
from minetorch.drawers.reading import are_whole, best_point, better, wants_log_scale
from minetorch.drawers.thin import Thin, isolated, thin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

Scale = Literal["auto", "log", "linear"]

WIDTH_INCHES, HEIGHT_INCHES, DPI = 8.0, 4.8, 150

# Okabe and Ito's palette, told apart with any colour vision (https://jfly.uni-koeln.de/color/), in an order
# that keeps neighbours far apart, and without its yellow, which is invisible on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444")
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
_INK, _GREY, _FAINT, _RESUME = "#222222", "#6B6B6B", "#E8E8E8", "#ABABAB"
_DOTTED_POINTS = 40  # a curve of up to so many shows each as a dot
_LEGEND_COLUMNS_OF_TEXT = 100  # letters across the picture, names and lines of the legend together
_LEGEND_SPACE = 6  # around a line and its text, in letters
_RINGED_CURVES = 6  # of more curves than that only the best has its best point marked
_LEGEND_ROW_POINTS = 14.6


def load_matplotlib() -> None:
    """Import everything that `render` needs.

    For the thread that starts DataLoader workers to call first: a process forked while another
    thread is in the middle of an import waits for ever at its own import of the same module.
    """
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import matplotlib.font_manager
    import matplotlib.layout_engine
    import matplotlib.ticker  # noqa: F401
    from PIL import Image

    Image.preinit()  # else the first picture imports Pillow's plugins


def render(graph: str, curves: Mapping[str, Floats], **options: Any) -> bytes:
    """Draw a graph of any number of points: curves of shape (2, points); otherwise as `paint`."""
    return paint(graph, {name: thin(points) for name, points in curves.items()}, **options)


def paint(
    graph: str,
    curves: Mapping[str, Thin],
    *,
    x_name: str = "epoch",
    y_name: str = "",
    code: str = "",
    resumes: Sequence[float] = (),
    scale: Scale = "auto",
) -> bytes:
    """Draw a graph.

    Args:
        graph: its name, which becomes the title.
        curves: what to draw, by the name of the curve.
        x_name: what x counts.
        y_name: what y is and its unit; the graph's name by default.
        code: the run's name, written in the corner.
        resumes: the x at which the run was resumed, each a faint line.
        scale: of y; "auto" is logarithmic where y is all positive, spans two decades, and lower is better.

    Returns:
        A PNG, 1200 pixels wide and 720 high (higher where the legend has many rows).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    labels = [_label(graph, name, curve) for name, curve in curves.items()]
    letters = max(map(len, labels), default=0) + _LEGEND_SPACE + 2 * _line_length(labels)
    columns = max(1, min(len(labels), int(_LEGEND_COLUMNS_OF_TEXT / letters)))
    rows = -(-len(labels) // columns)
    height = HEIGHT_INCHES + max(0, rows - 3) * _LEGEND_ROW_POINTS / 72
    margins = ConstrainedLayoutEngine(w_pad=0.16, h_pad=0.14)
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, facecolor="white", layout=margins)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="white")
    _draw_resumes(axes, resumes)
    handles = [_draw(axes, index, curve) for index, curve in enumerate(curves.values())]
    _ring_best(axes, graph, curves, [handle.get_color() for handle in handles])
    log = _is_log(graph, list(curves.values())) if scale == "auto" else scale == "log"
    _set_scales(axes, list(curves.values()), log)
    x_name += _resume_note(len(resumes)) + _band_note(curves)
    _name_axes(axes, x_name, (y_name or graph), log)
    _set_frame(axes)
    _set_title(axes, graph, code, above_points=rows * _LEGEND_ROW_POINTS)
    _add_legend(axes, handles, labels, columns)
    picture = BytesIO()
    figure.savefig(picture, format="png", metadata={"Title": printable(graph), "Software": "Minetorch"})
    return picture.getvalue()


def _draw_resumes(axes: Any, resumes: Sequence[float]) -> None:
    for x in resumes:
        axes.axvline(x, color=_RESUME, linewidth=1.1, linestyle=(0, (2, 2.5)), zorder=1)


def _ring_best(axes: Any, graph: str, curves: Mapping[str, Thin], colours: list[str]) -> None:
    rings = []
    for (name, curve), colour in zip(curves.items(), colours, strict=True):
        way = better(graph, name)
        point = best_point(curve.line, way)
        if point is not None:
            rings.append((-point[1] if way == "max" else point[1], point, colour))
    if len(curves) > _RINGED_CURVES and rings:
        rings = [min(rings)]
    for _, point, colour in rings:
        ring = {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.8}
        axes.plot(*point, "o", markersize=8, **ring, zorder=4)


def _draw(axes: Any, index: int, curve: Thin) -> Any:
    """Draw a curve, and return its line for the legend."""
    style = {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _DASHES[index // len(_COLOURS) % len(_DASHES)],
        "linewidth": 1.8,
        "solid_capstyle": "round",
        "solid_joinstyle": "round",
    }
    dot = {"marker": "o", "markersize": 4.5, "markeredgewidth": 0, "color": style["color"]}
    if curve.low is not None:
        axes.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.2, linewidth=0, zorder=2)
    few = curve.x.size <= _DOTTED_POINTS
    if curve.x.size == 1:
        dot["markersize"] = 8
    (line,) = axes.plot(curve.x, curve.y, **(style | dot if few else style), zorder=3)
    alone = isolated(curve.y)
    if not few and alone.any():
        axes.plot(curve.x[alone], curve.y[alone], **dot, linestyle="none", zorder=3)
    return line


def _label(graph: str, name: str, curve: Thin) -> str:
    """The curve's name, and the figures that a line does not tell: its best or last, and what is missing."""
    finite = curve.y[np.isfinite(curve.y)]
    # Of the line, which is a mean where points are many: the best single batch of thousands tells nothing.
    best = best_point(curve.line, better(graph, name))
    parts = [printable(name)]
    if best is not None:
        parts.append(f"best {best[1]:.4g} at {best[0]:,.10g}")
    elif finite.size:
        parts.append(f"last {finite[-1]:.4g}")
    if curve.lost:
        parts.append(f"{curve.lost:,} not finite")
    return "  ".join(parts)


def _set_scales(axes: Any, curves: list[Thin], log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    whole = are_whole([curve.line for curve in curves])
    axes.margins(x=0.02, y=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, steps=[1, 2, 5, 10], integer=whole, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}"))
    if not log:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
        axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-4, 6))
        return
    axes.set_yscale("log")
    # The band's lowest tips, single lucky batches, would else take most of the picture.
    positive = np.concatenate([curve.y[curve.y > 0] for curve in curves] or [np.empty(0)])
    if positive.size:
        axes.set_ylim(bottom=max(axes.get_ylim()[0], positive.min() / 10))


def _name_axes(axes: Any, x_name: str, y_name: str, log: bool) -> None:
    style = {"fontsize": 10.5, "color": _GREY, "labelpad": 7}
    axes.set_xlabel(x_name, **style)
    y_name = printable(y_name)
    axes.set_ylabel(f"{y_name}, log scale" if log else y_name, family=families(), parse_math=False, **style)


def _is_log(graph: str, curves: list[Thin]) -> bool:
    bands_are_positive = not any(curve.low is not None and np.any(curve.low <= 0) for curve in curves)
    return bands_are_positive and wants_log_scale([curve.line for curve in curves], better(graph, graph))


def _band_note(curves: Mapping[str, Thin]) -> str:
    """What line and band are, where points are too many to be drawn one by one."""
    each = max((curve.each for curve in curves.values()), default=1)
    return "" if each == 1 else f"   (line: mean of about {round(each):,} points, band: their range)"


def _resume_note(count: int) -> str:
    return "" if not count else "   (dotted: resumed)" if count == 1 else f"   (dotted: resumed, {count} times)"


def _set_frame(axes: Any) -> None:
    axes.set_axisbelow(True)
    axes.grid(visible=True, color=_FAINT, linewidth=0.9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#B5B5B5")
    axes.tick_params(which="both", length=0, labelsize=9.5, labelcolor=_GREY, pad=6)
    axes.yaxis.get_offset_text().set(color=_GREY, fontsize=9.5)


def _set_title(axes: Any, graph: str, code: str, above_points: float) -> None:
    """Write the title and the run's name above the legend, which takes `above_points`."""
    style = {"family": families(), "parse_math": False, "pad": above_points + 14}
    axes.set_title(printable(graph, most=36), loc="left", fontsize=15, color=_INK, fontweight="bold", **style)
    axes.set_title(printable(code, most=30), loc="right", fontsize=10, color=_GREY, **style)


def _line_length(labels: list[str]) -> float:
    """Of the legend's lines, in ems: long enough to tell dashes where colours come twice."""
    return 1.6 if len(labels) <= len(_COLOURS) else 3.0


def _add_legend(axes: Any, handles: list[Any], labels: list[str], columns: int) -> None:
    # Above the axes: inside, it would hide points, and the search for a free place is slow.
    legend = axes.legend(
        handles,
        [""] * len(labels),  # a label that begins with "_" would be left out; the texts are set below
        loc="lower left",
        bbox_to_anchor=(0, 1.02),
        borderaxespad=0,
        borderpad=0,
        fontsize=10.5,
        ncols=columns,
        frameon=False,
        handlelength=_line_length(labels),
        handletextpad=0.6,
        columnspacing=2.2,
        labelspacing=0.35,
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set(text=label, family=families(), color=_INK, parse_math=False)
