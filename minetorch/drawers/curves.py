"""The record of every point that a run has drawn.

There is one record per run, and it is saved with each checkpoint; every drawer is a view of it. That is
what heals the curves of a resumed run: the record is again what it was at the checkpoint, and each
drawer redraws itself from it, whatever the killed process had drawn since.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from minetorch.checkpoint.curves_file import CurvesSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

EPOCH = "epoch"
STEP = "step"


class Mark(NamedTuple):
    """Something that happened to the whole run, at one place of every curve."""

    kind: str
    """What: "resume"."""
    epoch: float
    """Where on an axis of epochs."""
    step: int
    """Where on an axis of optimizer steps."""
    time: float
    """When: Unix time in seconds."""

    def x(self, x_name: str) -> float | None:
        """The place on an axis of that name; None on one that counts something else."""
        return {EPOCH: self.epoch, STEP: float(self.step)}.get(x_name)


class Curve:
    """The points of one curve in the order in which they were drawn, 16 bytes each."""

    __slots__ = ("x", "y")

    def __init__(self) -> None:
        self.x = array("d")
        self.y = array("d")

    def __len__(self) -> int:
        return len(self.x)

    def add(self, x: float, y: float) -> None:
        """Append a point."""
        self.x.append(x)
        self.y.append(y)

    def to_numpy(self) -> npt.NDArray[np.float64]:
        """A copy of the points, of shape (2, points): x above y."""
        # A view of an array that is still growing would make its next append a BufferError.
        points = np.empty((2, len(self)))
        points[0], points[1] = self.x, self.y
        return points

    def since(self, start: int) -> npt.NDArray[np.float64]:
        """As `to_numpy`, without the first `start` points."""
        return np.array([self.x[start:], self.y[start:]], dtype=np.float64)


class Curves:
    """Graphs by name; a graph is curves by name. Holds NaN and infinite y as they came."""

    marks: list[Mark]
    """In the order in which they were made."""
    media: int
    """How many images, figures and histograms were drawn: no more is kept of them here."""

    def __init__(self) -> None:
        self.marks = []
        self.media = 0
        self._graphs: dict[str, dict[str, Curve]] = {}
        self._x_names: dict[str, str] = {}

    def __contains__(self, graph: object) -> bool:
        return graph in self._graphs

    def __iter__(self) -> Iterator[str]:
        return iter(self._graphs)

    def __len__(self) -> int:
        """How many points there are in all curves."""
        return sum(len(curve) for curves in self._graphs.values() for curve in curves.values())

    def __getitem__(self, graph: str) -> dict[str, Curve]:
        """The curves of a graph, in the order in which they first appeared."""
        return self._graphs[graph]

    def add(self, graph: str, curve: str, x: float, y: float) -> None:
        """Append a point to a curve, which need not exist before."""
        curves = self._graphs.setdefault(graph, {})
        if curve not in curves:
            curves[curve] = Curve()
        curves[curve].add(x, y)

    def points(self) -> Iterator[tuple[str, str, float, float]]:
        """Every point as (graph, curve, x, y), curve by curve."""
        for graph, curves in self._graphs.items():
            for name, curve in curves.items():
                for x, y in zip(curve.x, curve.y, strict=True):
                    yield graph, name, x, y

    def x_name(self, graph: str) -> str:
        """What x counts on this graph: "epoch" unless `name_x` said otherwise."""
        return self._x_names.get(graph, EPOCH)

    def name_x(self, graph: str, name: str) -> None:
        """Say what x counts on this graph."""
        self._x_names[graph] = name

    def copy(self) -> Curves:
        """The same points, to go on from independently."""
        copy = Curves()
        copy.load_state_dict(self.state_dict())
        return copy

    def snapshot(self) -> CurvesSnapshot:
        """The points up to now, without copying them: they stay as they are, and the next come after them."""
        return CurvesSnapshot(
            {
                graph: {name: (curve.x, curve.y, len(curve)) for name, curve in curves.items()}
                for graph, curves in self._graphs.items()
            },
            {"x_names": dict(self._x_names), "marks": [tuple(mark) for mark in self.marks], "media": self.media},
        )

    def state_dict(self) -> dict[str, Any]:
        """One float64 tensor of shape (2, points) per curve; readable with `weights_only=True`."""
        return {
            "graphs": {
                graph: {name: torch.from_numpy(curve.to_numpy()) for name, curve in curves.items()}
                for graph, curves in self._graphs.items()
            },
            "x_names": dict(self._x_names),
            "marks": [tuple(mark) for mark in self.marks],
            "media": self.media,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Become the record that `state_dict` was taken from (or empty, from an empty one)."""
        graphs: dict[str, dict[str, Curve]] = {}
        for graph, curves in state_dict.get("graphs", {}).items():
            graphs[graph] = {}
            for name, points in curves.items():
                curve = graphs[graph][name] = Curve()
                x, y = points.to("cpu", torch.float64).numpy()
                curve.x.frombytes(x.tobytes())
                curve.y.frombytes(y.tobytes())
        self._graphs = graphs
        self._x_names = dict(state_dict.get("x_names", {}))
        self.marks = [Mark(*mark) for mark in state_dict.get("marks", [])]
        self.media = state_dict.get("media", 0)
