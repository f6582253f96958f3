"""The file of a checkpoint that holds the points of its run's curves.

    {"graphs": [["loss", [["train", 3], ["val", 2]]], …], "x_names": {…}, "marks": […], …}, end of line
    for each curve in this order: the x of all its points, then their y

The first line is JSON in ASCII, padded with spaces to a multiple of 8 bytes; numbers are little-endian float64. The
file stands next to the payload, so that the time for which a save stalls the training does not grow with the number of
points, and a report reads no weights.
"""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from minetorch.checkpoint.schema import check_curves
from minetorch.checkpoint.verification import read_verified
from minetorch.errors import CheckpointCorruptError, in_brief

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Mapping

    from minetorch.checkpoint.manifest import StoredFile
    from minetorch.checkpoint.store import Store

    Points = tuple["array[float]", "array[float]", int]
    """The arrays of x and y, and how many of their numbers count."""

_PIECE = 1 << 16
"""Numbers copied at a time: the copy holds the interpreter's lock."""


class CurvesSnapshot:
    """The points that there were at one moment. The arrays may grow after it, and nothing else may happen to them.

    Iterating over it gives the bytes of a file, any number of times and on any thread.
    """

    def __init__(self, graphs: Mapping[str, Mapping[str, Points]], facts: Mapping[str, Any]) -> None:
        """Copy no point.

        Args:
            graphs: the points of each curve, by graph and by curve.
            facts: what JSON can hold; `read_curves` gives it back.
        """
        self._graphs = graphs
        self._facts = facts

    def with_facts(self, **facts: Any) -> CurvesSnapshot:
        """The same points and more facts."""
        return CurvesSnapshot(self._graphs, {**self._facts, **facts})

    def __iter__(self) -> Iterator[bytes]:
        graphs = [
            [graph, [[name, count] for name, (_, _, count) in curves.items()]] for graph, curves in self._graphs.items()
        ]
        header = json.dumps({"graphs": graphs, **self._facts}).encode("ascii")
        yield header + b" " * (-(len(header) + 1) % 8) + b"\n"
        for curves in self._graphs.values():
            for x, y, count in curves.values():
                yield from _bytes_of(x, count)
                yield from _bytes_of(y, count)


def _bytes_of(numbers: array[float], count: int) -> Iterator[bytes]:
    for start in range(0, count, _PIECE):
        piece = numbers[start : min(start + _PIECE, count)]
        if sys.byteorder == "big":
            piece.byteswap()
        yield piece.tobytes()


def parse_curves(data: bytes | memoryview, origin: str) -> dict[str, Any]:
    """What a snapshot's file holds: its facts, and as `graphs` float64 arrays of shape (2, points), x above y.

    Raises:
        CheckpointCorruptError: it is not such a file.
    """
    try:
        with io.BytesIO(data) as lines:
            header = lines.readline()
        content = json.loads(header)
        check_curves(content)
        offset = len(header)
        if "graphs" not in content:
            raise ValueError("it lacks its graphs")
        graphs: dict[str, dict[str, Any]] = {}
        for graph, curves in content["graphs"]:
            graphs[graph] = {}
            for name, count in curves:
                if 16 * count > len(data) - offset:
                    raise ValueError(f"it ends within the {count} points of {in_brief(name)}")
                points = np.frombuffer(data, "<f8", 2 * count, offset).reshape(2, count)
                graphs[graph][name] = points.astype(np.float64)  # a copy, which may be written to
                offset += points.nbytes
        if offset != len(data):
            raise ValueError(f"{len(data) - offset} bytes too many")
        return {**content, "graphs": graphs}
    except Exception as err:  # garbage fails in any way
        raise CheckpointCorruptError(f"{origin} is not a file of curves: {err}") from None


def read_curves(store: Store, curves: StoredFile) -> dict[str, Any]:
    """The content of a checkpoint's file of curves, as `parse_curves` gives it.

    Raises:
        CheckpointCorruptError: it is missing, or not the one that its manifest commits.
        StorageError: it could not be read.
    """
    return parse_curves(read_verified(store, curves), store.url_of(curves.name))
