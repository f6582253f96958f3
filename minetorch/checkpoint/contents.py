"""What is inside a checkpoint, without reading its tensors' data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from minetorch.checkpoint.reader import decode_skeleton
from minetorch.checkpoint.streaming import SeekableFile
from minetorch.checkpoint.verification import missing
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
    walk = _Walk(origin)
    return {str(key): list(walk.tensors(value, (str(key),))) for key, value in state.items()}


class _Walk:
    """One walk over a state. A container that stands in several places is walked in the first alone."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._seen: set[int] = set()

    def tensors(self, value: Any, path: tuple[str, ...]) -> Iterator[TensorInfo]:
        if isinstance(value, torch.Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            yield TensorInfo(path, tuple(value.shape), dtype, value.numel() * value.element_size())
            return
        parts: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, Mapping):
            parts = value.items()
        elif isinstance(value, list | tuple) and not isinstance(value, torch.Size):
            parts = enumerate(value)
        if id(value) in self._seen or not parts:
            return
        if len(path) > DEEPEST:
            raise CheckpointCorruptError(
                f"{self._origin} cannot be read as a checkpoint: its {path[0]} has more than {DEEPEST} levels"
            )
        self._seen.add(id(value))
        for key, part in parts:
            yield from self.tensors(part, (*path, str(key)))
