"""Digests of what a training consists of: tensors, batches, random generators. CRC-32, 5 to 7 GB/s a core."""

from __future__ import annotations

import random
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn


def of_tensor(tensor: torch.Tensor, before: int = 0) -> int:
    """Of type, shape and every bit; -0.0 is not 0.0."""
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    digest = zlib.crc32(f"{plain.dtype}{tuple(plain.shape)}".encode(), before)
    return zlib.crc32(plain.reshape(-1).view(torch.uint8).numpy().data, digest)


def of_data(data: Any, before: int = 0) -> int:
    """Of a batch: tensors, arrays and plain values in lists, tuples, dicts and objects."""
    if isinstance(data, torch.Tensor):
        return of_tensor(data, before)
    if isinstance(data, np.ndarray) and data.dtype != object:
        shape = zlib.crc32(f"{data.dtype}{data.shape}".encode(), before)
        return zlib.crc32(data.tobytes(), shape)
    if isinstance(data, str | bytes | int | float | complex | bool | None):
        return zlib.crc32(repr(data).encode(), before)
    if isinstance(data, Mapping):
        data = [part for item in data.items() for part in item]
    elif not isinstance(data, Sequence):
        data = [type(data).__qualname__, *sorted(getattr(data, "__dict__", {}).items())]
    for part in data:
        before = of_data(part, before)
    return before


def of_generators(device: torch.device) -> dict[str, int]:
    """Of the state of each of this process's global generators, by whose it is."""
    kind, keys, position, *_ = np.random.get_state()
    digests = {
        "Python's": zlib.crc32(array("q", random.getstate()[1]).tobytes()),
        "NumPy's": zlib.crc32(np.asarray(keys).tobytes(), zlib.crc32(f"{kind}{position}".encode())),
        "torch's": of_tensor(torch.get_rng_state()),
    }
    if device.type == "cuda":
        digests["the GPU's"] = of_tensor(torch.cuda.get_rng_state(device))
    return digests


def model_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Each parameter and buffer once, in the order of the modules."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{prefix}.{name}".lstrip("."), tensor


def optimizer_values(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> Iterator[tuple[str, Any]]:
    """What the optimizer keeps for each parameter, in the order of its groups.

    Args:
        optimizer: the optimizer.
        names: of parameters, by their `id`.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            values = optimizer.state.get(parameter, {})
            for key in sorted(values):
                yield f"optimizer's {key} of {names.get(id(parameter), '?')}", values[key]


def optimizer_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, str]]:
    """The options of each parameter group, such as the learning rate, as text that tells every bit."""
    return [
        {key: repr(float(value) if isinstance(value, torch.Tensor) else value) for key, value in group.items()}
        for group in (
            {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
        )
    ]


def packed(digests: Iterator[int]) -> str:
    """Eight hexadecimal digits for each."""
    return "".join(f"{digest:08x}" for digest in digests)
