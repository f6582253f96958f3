"""What hooks may draw: the check of names and numbers at the door, so that no drawer meets a bad one."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import torch

from minetorch.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

# A file system takes names of 255 bytes; the rest is for the suffix and a temporary name.
_LONGEST_GRAPH_NAME = 200


def to_float(value: object, what: str) -> float:
    """The number in `value`; a tensor on a GPU is waited for.

    Args:
        value: a number of Python or NumPy, or a tensor or array without dimensions.
        what: what the value is for, in the error's words.

    Raises:
        ConfigurationError: it is anything else, or does not fit a float.
    """
    try:
        if isinstance(value, torch.Tensor):
            if value.ndim == 0 and not value.is_complex():
                return float(value.detach())
        elif isinstance(value, (np.ndarray, np.generic)):
            if value.ndim == 0 and value.dtype.kind in "biuf":
                return float(value)
        elif isinstance(value, Real):
            return float(value)
    except OverflowError:
        raise ConfigurationError(f"{what} is too large for a float") from None
    raise ConfigurationError(f"{what} must be a number or a tensor without dimensions, not {_describe(value)}")


def check_graph(graph: object) -> str:
    """A graph's name, fit to be the name of a file.

    Raises:
        ConfigurationError: it is not, with the reason.
    """
    if not isinstance(graph, str):
        raise ConfigurationError(f"a graph's name must be a string, not {_describe(graph)}")
    if not graph.strip() or graph in (".", ".."):
        raise ConfigurationError(f"{graph!r} cannot name a graph: give it a name that can be a file's")
    if "/" in graph or "\\" in graph or not graph.isprintable():
        raise ConfigurationError(
            f"{graph!r} cannot name a graph, because a file is named after it: leave out '/', '\\' and "
            "control characters. To draw several curves on one graph: "
            "drawer.scalars({'train': …, 'val': …}, 'loss')"
        )
    if len(graph.encode("utf-8", "surrogatepass")) > _LONGEST_GRAPH_NAME:
        raise ConfigurationError(f"{graph!r} is too long to name a graph: {_LONGEST_GRAPH_NAME} bytes at most")
    return graph


def check_values(values: Mapping[str, object], graph: str) -> dict[str, float]:
    """The y of each curve of `graph` as a float.

    Raises:
        ConfigurationError: a curve's name or value is no name or no number.
    """
    try:
        pairs = list(values.items())
    except AttributeError:
        raise ConfigurationError(
            f"drawer.scalars takes a dict of curve names and values for the graph {graph!r}, not "
            f"{_describe(values)}; for a single value there is drawer.scalar(value, {graph!r})"
        ) from None
    checked = {}
    for name, value in pairs:
        if not isinstance(name, str) or not name.strip():
            raise ConfigurationError(f"{name!r} cannot name a curve of the graph {graph!r}: give a string")
        checked[name] = to_float(value, f"the value of {name!r} on the graph {graph!r}")
    return checked


def check_x(x: object, graph: str) -> float:
    """The place on the x axis as a finite float.

    Raises:
        ConfigurationError: it is no number, or not finite.
    """
    number = to_float(x, f"x on the graph {graph!r}")
    if not math.isfinite(number):
        raise ConfigurationError(f"x on the graph {graph!r} must be finite, not {number}")
    return number


def _describe(value: object) -> str:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"a {type(value).__name__} of shape {tuple(value.shape)} and type {value.dtype}"
    return f"{type(value).__name__} {str(value)[:60]!r}"
