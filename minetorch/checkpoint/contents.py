"""What is inside a checkpoint, without reading its tensors' data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from minetorch.checkpoint.reader import decode_skeleton
from minetorch.checkpoint.streaming import SeekableFile
from minetorch.checkpoint.verification import missing
from minetorch.checkpoint.walk import walk
from minetorch.errors import CheckpointCorruptError

if TYPE_CHECKING:
    from minetorch.checkpoint.manifest import Manifest
    from minetorch.checkpoint.store import Store

DEEPEST = 100
"""Containers within one another that are looked into."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a state."""

    path: tuple[str, ...]
    """The keys that lead to it, as in `("state_dict", "0.weight")`."""
    shape: tuple[int, ...]
    dtype: str
    """As torch calls it, without `torch.`."""
    size: int
    """Bytes of its elements; tensors that share memory are each counted whole."""


def read_contents(store: Store, manifest: Manifest) -> dict[str, list[TensorInfo]]:
    """The tensors in a checkpoint's payload by top-level key; a key without tensors has an empty list.

    Raises:
        CheckpointMismatchError: it contains code, or is not a state dict.
        CheckpointCorruptError: it is missing, or cannot be read as a checkpoint.
        StorageError: the storage could not be read.
    """
    origin = store.url_of(manifest.payload)
    try:
        file = SeekableFile(store, manifest.payload)
    except FileNotFoundError:
        raise missing(origin) from None
    state = decode_skeleton(file, origin)
    tensors: dict[str, list[TensorInfo]] = {str(key): [] for key in state}
    for path, value in walk(state):
        if isinstance(value, torch.Tensor):
            tensors[str(path[0])].append(_info(tuple(map(str, path)), value))
        elif len(path) > DEEPEST and isinstance(value, Mapping | list | tuple) and value:
            raise CheckpointCorruptError(
                f"{origin} cannot be read as a checkpoint: its {path[0]} has more than {DEEPEST} levels"
            )
    return tensors


def _info(path: tuple[str, ...], tensor: torch.Tensor) -> TensorInfo:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorInfo(path, tuple(tensor.shape), dtype, tensor.numel() * tensor.element_size())
