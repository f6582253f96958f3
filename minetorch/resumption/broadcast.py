"""Sends the state that rank 0 has read to the other ranks, without a second copy in their memory.

Rank 0 sends an outline of the state, with a number in place of each tensor, and then the tensors' bytes in buckets of
a few MiB. The other ranks receive the weights in the model itself and the optimizer's tensors on the device.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from minetorch.distributed.world import World

State = dict[str, Any]

BUCKET = 16 * 2**20
"""Bytes in one broadcast: many small tensors, or a part of a large one. No tensor needs more memory than this."""


@dataclass(frozen=True)
class _Tensor:
    """The properties of a tensor that the other ranks need to allocate it."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    weight: str | None
    """Its name in the model's state; None if it is not there."""
    on_device: bool
    """Whether the optimizer needs it on the device."""


@dataclass(frozen=True)
class _Outline:
    """A state without its tensors."""

    pickled: bytes
    tensors: list[_Tensor]


def read_once(
    read: Callable[[], State | None], weights: Callable[[], Mapping[str, torch.Tensor]], world: World
) -> State | None:
    """Have rank 0 read a state, and give it to every rank. Every rank calls it; an error is raised on every rank.

    Args:
        read: returns a checkpoint's state, with the tensors on the CPU; None if there is no checkpoint.
        weights: returns the tensors of this rank's model by their names in the state. A tensor with the layout of the
            state's tensor is overwritten, and the returned state then holds it.
        world: all ranks.
    """
    if world.size == 1:
        return read()
    state: State | None = None
    tensors: list[torch.Tensor] = []

    def outline() -> _Outline | None:
        nonlocal state, tensors
        state = read()
        if state is None:
            return None
        outlined, tensors = _outline(state)
        return outlined

    outlined = world.on_main(outline)
    if outlined is None:
        return None
    if state is None:
        mine = weights()
        tensors = [_room_for(one, mine, world.device) for one in outlined.tensors]
    _broadcast(tensors, world)
    return _Unpickler(outlined.pickled, tensors).load() if state is None else state


def _outline(state: State) -> tuple[_Outline, list[torch.Tensor]]:
    """The outline of a checkpoint's state, and the tensors that the outline leaves out."""
    weights = state.get("state_dict")
    names = {id(value): name for name, value in weights.items()} if isinstance(weights, Mapping) else {}
    of_optimizer = {id(tensor) for tensor in _large_tensors(state.get("optimizer"))}
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(state)
    outlined = [
        _Tensor(tuple(one.shape), one.stride(), one.dtype, names.get(id(one)), id(one) in of_optimizer)
        for one in pickler.tensors
    ]
    return _Outline(file.getvalue(), outlined), pickler.tensors


def _broadcast(tensors: Sequence[torch.Tensor], world: World) -> None:
    """Copy rank 0's bytes of these tensors to every rank, in place. The layouts are the same on every rank."""
    pieces = [_bytes_of(tensor) for tensor in tensors if tensor.numel()]
    device = world.device if world.device.type == "cuda" else torch.device("cpu")  # gloo sends from the CPU
    bucket = torch.empty(min(BUCKET, sum(map(len, pieces))), dtype=torch.uint8)
    for filling in _fillings(pieces, len(bucket)):
        sizes = list(map(len, filling))
        part = bucket[: sum(sizes)]
        if world.is_main:
            torch.cat(filling, out=part)
        sent = part.to(device)
        dist.broadcast(sent, src=0)
        if not world.is_main:
            for piece, received in zip(filling, sent.split(sizes), strict=True):
                piece.copy_(received)


def _fillings(pieces: Sequence[torch.Tensor], size: int) -> Iterator[list[torch.Tensor]]:
    """Group the pieces into lists of `size` bytes (the last one may be shorter), and cut pieces that do not fit."""
    filling: list[torch.Tensor] = []
    room = size
    for piece in pieces:
        while len(piece):
            filling.append(piece[:room])
            piece = piece[room:]
            room -= len(filling[-1])
            if not room:
                yield filling
                filling, room = [], size
    if filling:
        yield filling


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor that has no gaps, as they lie in memory."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _large_tensors(optimizer: Any) -> Iterator[torch.Tensor]:
    """The tensors of an optimizer's state without its counters, which torch keeps on the CPU."""
    states = optimizer.get("state") if isinstance(optimizer, Mapping) else None
    for values in states.values() if isinstance(states, Mapping) else ():
        for value in values.values() if isinstance(values, Mapping) else ():
            if isinstance(value, torch.Tensor) and value.numel() > 1:
                yield value


def _room_for(tensor: _Tensor, weights: Mapping[str, torch.Tensor], device: torch.device) -> torch.Tensor:
    weight = weights.get(tensor.weight) if tensor.weight is not None else None
    if weight is not None and not weight.is_inference():
        layout = tuple(weight.shape), weight.stride(), weight.dtype
        if weight.layout is torch.strided and layout == (tensor.shape, tensor.stride, tensor.dtype):
            return weight
    place = device if tensor.on_device else "cpu"
    return torch.empty_strided(tensor.shape, tensor.stride, dtype=tensor.dtype, device=place)


class _Pickler(pickle.Pickler):
    """Leaves out the tensors, and collects each once."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []
        self._numbers: dict[tuple[Any, ...], int] = {}

    def persistent_id(self, value: Any) -> int | None:
        if type(value) is not torch.Tensor or not _is_plain(value):
            return None
        key = value.data_ptr(), value.shape, value.stride(), value.dtype
        if key not in self._numbers:
            self._numbers[key] = len(self.tensors)
            self.tensors.append(value)
        return self._numbers[key]


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether the tensor's bytes describe it completely, and lie in one piece of memory."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return False
    whole = tensor.is_contiguous() or torch.empty_like(tensor, device="meta").stride() == tensor.stride()
    return whole and not tensor.requires_grad and not tensor.is_meta and not vars(tensor)


class _Unpickler(pickle.Unpickler):
    """Puts back the tensors that `_Pickler` left out."""

    def __init__(self, pickled: bytes, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__(io.BytesIO(pickled))
        self._tensors = tensors

    def persistent_load(self, number: int) -> torch.Tensor:
        return self._tensors[number]
