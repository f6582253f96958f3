"""Pictures of rows: what grows with the number of workers, and how often a peer's figure is ours."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import OURS, Row

__all__ = ["draw"]

OF_WORKERS = re.compile(r"^(\d+) (?:workers?|ranks?)\b")
COLOURS = {OURS: "#d84315"}
OTHERS = "#1565c0", "#2e7d32", "#6a1b9a", "#00838f", "#5d4037", "#455a64"
UNITS = {"s": "seconds", "MiB": "MiB", "": "times"}


def draw(name: str, rows: Sequence[Row], folder: Path) -> list[tuple[Path, str]]:
    """Write the pictures of one benchmark's rows; return their files and captions, none where there is none to draw."""
    curves: dict[str, list[tuple[int, Row]]] = defaultdict(list)
    for row in rows:
        if row.figures and (found := OF_WORKERS.match(row.what)):
            curves[row.what[found.end() :].lstrip(":, ")].append((int(found[1]), row))
    curves = {what: points for what, points in curves.items() if len({workers for workers, _ in points}) > 2}
    if not curves:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"benchmark-{name}.png"
    _draw_curves(curves, file)
    return [(file, f"{name}: by the number of workers, Minetorch and its peers")]


def _draw_curves(curves: dict[str, list[tuple[int, Row]]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(curves), 4), dpi=80, layout="constrained")
    all_axes: Any = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (what, points) in zip(all_axes, curves.items(), strict=True):
        names = dict.fromkeys(name for _, row in points for name in row.figures)
        others = iter(OTHERS)
        for name in names:
            there = [(workers, row.figures[name]) for workers, row in points if name in row.figures]
            axes.errorbar(
                [workers for workers, _ in there],
                [each.median for _, each in there],
                [[each.median - each.low for _, each in there], [each.high - each.median for _, each in there]],
                marker="o",
                capsize=3,
                label="Minetorch" if name == OURS else name,
                color=COLOURS.get(name) or next(others),
            )
        counts = sorted({workers for workers, _ in points})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(counts, [str(each) for each in counts])
        axes.set_title(what, fontsize=10, wrap=True)
        axes.set_xlabel("workers")
        axes.set_ylabel(UNITS.get(points[0][1].unit, points[0][1].unit))
        axes.grid(visible=True, which="both", alpha=0.2)
        axes.legend(fontsize=8)
    figure.savefig(file)
