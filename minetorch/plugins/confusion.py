"""Figures of a confusion matrix, and pictures of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
"""Samples by class (row) and prediction (column)."""

_MOST_WRITTEN = 20
"""Classes up to which each cell of the picture has its count written in it."""


def accuracy(counts: Counts) -> float:
    """The share of the samples that were predicted right; NaN without samples."""
    return _ratio(np.trace(counts), counts.sum())


def per_class(counts: Counts) -> dict[str, list[float]]:
    """Precision, recall and F1 by class. What cannot be said, for want of samples or predictions, is NaN.

    F1 is 2 * hits / (samples + predictions), so that a class that was never predicted has 0.
    """
    hits, samples, predictions = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    return {
        "precision": [_ratio(*pair) for pair in zip(hits, predictions, strict=True)],
        "recall": [_ratio(*pair) for pair in zip(hits, samples, strict=True)],
        "f1": [_ratio(2 * hit, of) for hit, of in zip(hits, samples + predictions, strict=True)],
    }


def macro_f1(counts: Counts) -> float:
    """The mean F1 of the classes that have a sample or a prediction; NaN where none has."""
    f1 = np.array(per_class(counts)["f1"])
    there = f1[~np.isnan(f1)]
    return float(there.mean()) if len(there) else float("nan")


def report(counts: Counts, labels: Sequence[str]) -> str:
    """A CSV table: one row a class, with its precision, recall, F1 and number of samples."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "precision", "recall", "f1", "samples"])
    figures = per_class(counts)
    for row, label in enumerate(labels):
        writer.writerow([label, *(f"{values[row]:.6g}" for values in figures.values()), int(counts[row].sum())])
    return text.getvalue()


def picture(counts: Counts, labels: Sequence[str], title: str) -> bytes:
    """A PNG of the matrix: each row's shares as shades, the counts as figures where there is room for them."""
    from matplotlib.figure import Figure

    size = min(4 + 0.35 * len(labels), 16)
    figure = Figure(figsize=(size, size), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    step = max(1, len(labels) // 40)
    places = range(0, len(labels), step)
    axes.set_xticks(places, [labels[place] for place in places], rotation=90)
    axes.set_yticks(places, [labels[place] for place in places])
    axes.set(xlabel="predicted", ylabel="class", title=title)
    if len(labels) <= _MOST_WRITTEN:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=7)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else float("nan")
