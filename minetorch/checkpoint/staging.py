"""Copies a state into memory of its own, so that training can continue while the copy is saved.

Everything is copied before the training thread continues. A copy made while the next forward and backward run would
take less of that thread's time, but the loss function and hooks may change any tensor (`parameter.data.mul_(…)` does
not even raise its version), and then the copy holds values of two moments. A digest that shows this takes longer than
the copy.

The memory is kept from one save to the next: fresh memory costs a page fault for every 4 KiB, which makes a first copy
three times as slow as the next.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Staged:
    """A copy of a state. A GPU may still be at it: `wait` before reading tensors."""

    def __init__(self, state: dict[str, Any], events: Sequence[torch.cuda.Event], sources: list[torch.Tensor]) -> None:
        self.state = state
        """Equal to what was staged and sharing no memory with it; tensors on the CPU."""
        self._events = events
        self._sources = sources  # kept until the GPU has read them

    def wait(self) -> None:
        """Return when the copy is complete. Any thread may call it."""
        for event in self._events:
            event.synchronize()
        self._sources.clear()


class Stager:
    """Stages one state after another in the same memory."""

    def __init__(self) -> None:
        self._memory: list[torch.Tensor] = []

    def stage(self, state: dict[str, Any]) -> Staged:
        """Copy a state, which `plain_state` has passed. The one staged before must not be needed any more.

        The caller may change the state as soon as this returns: a GPU copies before it runs what it is given next.
        """
        staging = _Staging(self._memory)
        staged = staging.copy(state)
        self._memory = staging.taken
        return staged


class _Staging:
    """The copying of one state."""

    def __init__(self, memory: list[torch.Tensor]) -> None:
        self.taken: list[torch.Tensor] = []
        self._memory = memory
        self._free: dict[tuple[int, bool], list[torch.Tensor]] | None = None
        self._storages: dict[int, torch.Tensor] = {}
        self._done: dict[int, Any] = {}
        self._on_gpus: dict[torch.device, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def copy(self, state: dict[str, Any]) -> Staged:
        self._free = _keep(self._memory, _needs(state))
        copied: dict[str, Any] = self._visit(state)
        events = [_copy_from_gpu(device, pairs) for device, pairs in self._on_gpus.items()]
        return Staged(copied, events, [source for pairs in self._on_gpus.values() for _, source in pairs])

    def _visit(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) or not isinstance(value, _IMMUTABLE):
            if id(value) not in self._done:
                self._done[id(value)] = self._visit_object(value)
            return self._done[id(value)]
        return value

    def _visit_object(self, value: Any) -> Any:
        kind = type(value)
        if kind in (torch.Tensor, nn.Parameter):
            return self._with_attributes(self._visit_tensor(value), value)
        if kind in (dict, OrderedDict, Counter):
            return self._with_attributes(kind({key: self._visit(item) for key, item in value.items()}), value)
        if kind in (list, tuple, set):
            return kind(self._visit(item) for item in value)
        return copy.deepcopy(value)  # of a class that the user has told torch to trust

    def _with_attributes(self, copied: Any, value: Any) -> Any:
        for name, item in getattr(value, "__dict__", {}).items():
            setattr(copied, name, self._visit(item))
        return copied

    def _visit_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if not _is_strided(tensor):
            copied = tensor.detach().to("cpu", copy=True)
        else:
            memory = self._storage_copy(tensor)
            copied = torch.empty(0, dtype=tensor.dtype)
            copied.set_(memory.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(copied, tensor.requires_grad)
        return copied.requires_grad_(tensor.requires_grad)

    def _storage_copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """The bytes of a tensor's whole storage, which several tensors may share, in memory of ours."""
        key = _key(tensor)
        if key not in self._storages:
            source = _bytes_of(tensor)
            target = self._take(source)
            self.taken.append(target)
            self._storages[key] = target
            if source.device.type == "cuda":
                self._on_gpus.setdefault(source.device, []).append((target, source))
            else:
                target.copy_(source)
        return self._storages[key]

    def _take(self, source: torch.Tensor) -> torch.Tensor:
        assert self._free is not None
        pinned = source.device.type == "cuda"
        free = self._free.get((source.nbytes, pinned))
        return free.pop() if free else torch.empty(source.nbytes, dtype=torch.uint8, pin_memory=pinned)


def _copy_from_gpu(device: torch.device, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.cuda.Event:
    """Copy on the stream that computes, and return the event after it.

    All at once: a call for each tensor would hold up the training of a model with a thousand.
    """
    stream = torch.cuda.current_stream(device)
    targets, sources = map(list, zip(*pairs, strict=True))
    with torch.cuda.stream(stream):
        torch._foreach_copy_(targets, sources, non_blocking=True)
        event = torch.cuda.Event(blocking=True)  # a thread that waits for it leaves the core to others
        event.record(stream)
    return event


_IMMUTABLE = (
    type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout, torch.Size
)  # fmt: skip


def _is_strided(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a plain view of a storage, and its storage's bytes are all there is to it."""
    plain = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta
    return plain and not tensor.is_conj() and not tensor.is_neg()


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor's whole storage, where they are."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def storage_bytes(state: Any) -> int:
    """The bytes of all the storages that a state's tensors are views of."""
    return sum(size * count for (size, _), count in _needs(state).items())


def _needs(state: Any) -> Counter[tuple[int, bool]]:
    """How many pieces of memory of which size a state takes, pinned or not."""
    found: dict[int, tuple[int, bool]] = {}
    for tensor in _tensors(state, set()):
        if _is_strided(tensor):
            found[_key(tensor)] = tensor.untyped_storage().nbytes(), tensor.device.type == "cuda"
    return Counter(found.values())


def _tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item, seen)


def _keep(memory: list[torch.Tensor], needs: Counter[tuple[int, bool]]) -> dict[tuple[int, bool], list[torch.Tensor]]:
    """What of the memory can be used again. The rest is let go before any is taken: one staged copy, not two."""
    kept: dict[tuple[int, bool], list[torch.Tensor]] = {}
    for piece in memory:
        size = piece.nbytes, piece.is_pinned()
        if needs[size] > 0:
            needs[size] -= 1
            kept.setdefault(size, []).append(piece)
    memory.clear()
    return kept
