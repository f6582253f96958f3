"""Makes a curve of any number of points into one of at most so many as a picture can show."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

BUCKETS = 600  # about half the pixels across a picture
MOST_POINTS = 1200  # so many points are still drawn one by one


class Thin(NamedTuple):
    """A curve to draw; each array has the shape (points,). NaN in `y` is a gap."""

    x: Floats
    y: Floats
    low: Floats | None
    """The lowest y that each point stands for; None where each stands for itself."""
    high: Floats | None
    """The highest, likewise."""
    lost: int
    """How many y were not finite."""
    each: float = 1
    """How many points each stands for, about."""

    @property
    def line(self) -> Floats:
        """The points themselves, of shape (2, points)."""
        return np.array([self.x, self.y])


def thin(points: Floats) -> Thin:
    """The mean and the range of equally many neighbouring points, or the points where they are few.

    The range is kept because a mean alone hides spikes, and a spike is what people look for.

    Args:
        points: shape (2, points), x above y; y that is not finite is a gap.

    Returns:
        At most `MOST_POINTS` points.
    """
    x, y = points
    finite = np.isfinite(y)
    lost = int(y.size - np.count_nonzero(finite))
    y = np.where(finite, y, np.nan)
    if x.size <= MOST_POINTS:
        return Thin(x, y, None, None, lost)
    starts = np.linspace(0, x.size, BUCKETS, endpoint=False).astype(np.intp)
    sizes = np.diff(starts, append=x.size)
    counts = np.add.reduceat(finite.astype(np.float64), starts)
    # Divided before they are summed: the sum of figures near the largest float would be infinite.
    shares = np.where(finite, y, 0.0) / np.repeat(np.maximum(counts, 1), sizes)
    mean = np.where(counts > 0, np.add.reduceat(shares, starts), np.nan)
    places = np.add.reduceat(x, starts) / sizes
    if np.all(x == np.floor(x)):
        places = np.round(places)  # no one wants to read of step 1,234.5
    return Thin(places, mean, np.fmin.reduceat(y, starts), np.fmax.reduceat(y, starts), lost, x.size / BUCKETS)


def isolated(y: Floats) -> npt.NDArray[np.bool_]:
    """Which finite points have a gap (or an end) on both sides, so that no line shows them."""
    finite = np.concatenate([[False], np.isfinite(y), [False]])
    return np.asarray(finite[1:-1] & ~finite[:-2] & ~finite[2:])
