"""What samples of a stream look like, for ranks to see whether they read the same stream."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

Sketch = list[str | float]

_SAMPLES = 8
_ITEMS = 64
"""Of a list or dict in a sample."""
_TOLERANCE = 1e-3
"""Relative. Machines differ in how they round, and in how they decode an image."""


def sketch(samples: Sequence[Any]) -> Sketch:
    """Describe the first samples: what is whole or text exactly, fractions and pixels by the size of their mean."""
    values: Sketch = []
    for sample in samples[:_SAMPLES]:
        _describe(sample, values)
    return values


def are_alike(one: Sketch, other: Sketch) -> bool:
    """Whether the samples of two sketches may be the same."""
    return len(one) == len(other) and all(map(_is_alike, one, other))


def differ_in_noise_alone(one: Sketch, other: Sketch) -> bool:
    """Whether all that is whole or text is the same in two sketches: what augmentation leaves of the same samples."""
    return len(one) == len(other) and all(
        (isinstance(a, float) and isinstance(b, float)) or a == b for a, b in zip(one, other, strict=True)
    )


def _is_alike(one: str | float, other: str | float) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_TOLERANCE) or (math.isnan(one) and math.isnan(other))
    return one == other


def _describe(value: Any, values: Sketch) -> None:
    if isinstance(value, Mapping):
        for key, item in islice(value.items(), _ITEMS):
            _describe(key, values)
            _describe(item, values)
    elif isinstance(value, list | tuple):
        values.append(f"{len(value)} items")
        for item in value[:_ITEMS]:
            _describe(item, values)
    elif isinstance(value, float):
        values.append(value)
    elif isinstance(value, str | bytes | int | None):
        values.append(_digest(repr(value).encode()))
    elif (array := _as_array(value)) is not None:
        values.append(f"{array.shape} {array.dtype}")
        has_noise = array.dtype.kind in "fc" or array.dtype == np.uint8
        values.append(float(np.abs(array).mean()) if has_noise and array.size else _digest(array.tobytes()))
    else:
        values.append(type(value).__name__)


def _as_array(value: Any) -> np.ndarray[Any, Any] | None:
    """Numbers in memory, such as a tensor or an image; None of anything else."""
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
            return None
        value = value.detach().float() if value.is_floating_point() else value.detach().resolve_conj().resolve_neg()
    elif not (hasattr(value, "__array__") or hasattr(value, "__array_interface__")):
        return None
    array: np.ndarray[Any, Any] = np.asarray(value)
    return array if array.dtype.kind in "biufc" else None


def _digest(data: bytes) -> str:
    return f"{zlib.crc32(data):08x}"
