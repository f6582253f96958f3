"""How a graph is best read: which way is better, and on which scale. Pure, known by names and numbers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

Better = Literal["min", "max"]

_LOWER = {"cer", "err", "error", "fid", "mae", "mape", "mse", "nll", "perplexity", "ppl", "rmse", "wer"}
_HIGHER = {"acc", "accuracy", "auc", "auroc", "bleu", "dice", "f1", "iou", "map", "miou", "precision", "psnr"}
_HIGHER |= {"r2", "recall", "reward", "rouge", "score", "ssim"}


def better(graph: str, curve: str) -> Better | None:
    """Whether lower or higher is better for a curve, as far as its name and its graph's tell."""
    for name in (curve, graph):
        words = re.findall(r"[a-z]+\d*", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
        if any("loss" in word or word in _LOWER for word in words):
            return "min"
        if any("accuracy" in word or word in _HIGHER for word in words):
            return "max"
    return None


def best_point(points: Floats, way: Better | None) -> tuple[float, float] | None:
    """The first best (x, y) of a curve of shape (2, points); None for fewer than two finite points."""
    x, y = points
    finite = np.isfinite(y)
    if way is None or np.count_nonzero(finite) < 2:
        return None
    at = int(np.argmin(np.where(finite, y, np.inf)) if way == "min" else np.argmax(np.where(finite, y, -np.inf)))
    return float(x[at]), float(y[at])


def wants_log_scale(curves: Sequence[Floats], way: Better | None) -> bool:
    """Whether y spans more than two decades, all positive.

    Not where higher is better: there the interest lies at the top, which a log scale would flatten.
    """
    finite = np.concatenate([y[np.isfinite(y)] for _, y in curves]) if curves else np.empty(0)
    if way == "max" or finite.size == 0 or finite.min() <= 0:
        return False
    return bool(np.log10(finite.max()) - np.log10(finite.min()) > 2)


def are_whole(curves: Sequence[Floats]) -> bool:
    """Whether every x is a whole number."""
    return all(bool(np.all(x == np.floor(x))) for x, _ in curves)
