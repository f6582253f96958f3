"""One graph as a PNG, drawn with Matplotlib.

Never pyplot, never rcParams: pictures are made on a thread of their own, while a user's notebook may
be drawing with both.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from minetorch.drawers.lettering import families, printable
from minetorch.drawers.reading import are_whole, best_point, better, wants_log_scale
from minetorch.drawers.thin import BUCKETS, MOST_POINTS, Thin, isolated, thin

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

WIDTH_INCHES, HEIGHT_INCHES, DPI = 8.0, 4.8, 150

# Okabe and Ito's palette, told apart with any colour vision (https://jfly.uni-koeln.de/color/), in an order
# that keeps neighbours far apart, and without its yellow, which is invisible on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#444444")
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
_INK, _GREY, _FAINT = "#222222", "#6B6B6B", "#E8E8E8"
_DOTTED_POINTS = 40  # a curve of up to so many shows each as a dot
_LEGEND_COLUMNS_OF_TEXT = 104  # letters across the picture, names and lines of the legend together
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


def render(graph: str, curves: Mapping[str, Floats], *, x_name: str = "epoch", code: str = "") -> bytes:
    """Draw a graph.

    Args:
        graph: its name, which becomes the title.
        curves: points of shape (2, points) by the name of their curve; y that is not finite is a gap.
        x_name: what x counts.
        code: the run's name, written in the corner.

    Returns:
        A PNG, 1200 pixels wide and 720 high (higher where the legend has many rows).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    thinned = {name: thin(points) for name, points in curves.items()}
    labels = [_label(graph, name, curve) for name, curve in thinned.items()]
    columns = max(1, min(len(labels), _LEGEND_COLUMNS_OF_TEXT // (max(map(len, labels), default=0) + 7)))
    rows = -(-len(labels) // columns)
    height = HEIGHT_INCHES + max(0, rows - 3) * _LEGEND_ROW_POINTS / 72
    margins = ConstrainedLayoutEngine(w_pad=0.16, h_pad=0.14)
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, facecolor="white", layout=margins)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="white")
    handles = [_draw(axes, index, graph, *curve) for index, curve in enumerate(thinned.items())]
    _set_scales(axes, graph, list(thinned.values()), x_name + _band_note(curves))
    _set_frame(axes)
    _set_title(axes, graph, code, above_points=rows * _LEGEND_ROW_POINTS)
    _add_legend(axes, handles, labels, columns)
    picture = BytesIO()
    figure.savefig(picture, format="png", metadata={"Title": printable(graph), "Software": "Minetorch"})
    return picture.getvalue()


def _draw(axes: Any, index: int, graph: str, name: str, curve: Thin) -> Any:
    """Draw a curve and its best point, and return its line for the legend."""
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
    best = best_point(curve.line, better(graph, name))
    if best is not None:
        ring = {"markerfacecolor": "white", "markeredgecolor": style["color"], "markeredgewidth": 1.8}
        axes.plot(*best, "o", markersize=8, **ring, zorder=4)
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


def _set_scales(axes: Any, graph: str, curves: list[Thin], x_name: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    whole = are_whole([curve.line for curve in curves])
    axes.margins(x=0.02, y=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, steps=[1, 2, 5, 10], integer=whole, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}"))
    log = _is_log(graph, curves)
    if log:
        axes.set_yscale("log")
        # The band's lowest tips, single lucky batches, would else take most of the picture.
        floor = min(np.nanmin(curve.y) for curve in curves if np.isfinite(curve.y).any()) / 10
        axes.set_ylim(bottom=max(axes.get_ylim()[0], floor))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
        axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-4, 6))
    style = {"fontsize": 10.5, "color": _GREY, "labelpad": 7}
    axes.set_xlabel(x_name, **style)
    y_name = f"{printable(graph)}, log scale" if log else printable(graph)
    axes.set_ylabel(y_name, family=families(), parse_math=False, **style)


def _is_log(graph: str, curves: list[Thin]) -> bool:
    bands_are_positive = not any(curve.low is not None and np.any(curve.low <= 0) for curve in curves)
    return bands_are_positive and wants_log_scale([curve.line for curve in curves], better(graph, graph))


def _band_note(curves: Mapping[str, Floats]) -> str:
    """What line and band are, where points are too many to be drawn one by one."""
    most = max((points.shape[1] for points in curves.values()), default=0)
    if most <= MOST_POINTS:
        return ""
    return f"   (line: mean of about {round(most / BUCKETS):,} points, band: their range)"


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
        handlelength=1.6,
        handletextpad=0.6,
        columnspacing=2.2,
        labelspacing=0.35,
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set(text=label, family=families(), color=_INK, parse_math=False)
