"""Whether a figure grows. Pure."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """By how much y grows for each of x: the median of all pairs' slopes (Theil and Sen), which no outlier moves."""
    pairs = [(y[j] - y[i]) / (x[j] - x[i]) for i in range(len(x)) for j in range(i + 1, len(x)) if x[j] != x[i]]
    return statistics.median(pairs) if pairs else 0.0
