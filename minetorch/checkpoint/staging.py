"""Copies a state into memory of its own, so that training may go on while that copy is being saved.

Most of a state changes at known moments only: parameters and the optimizer's tensors in `optimizer.step()`. Their
copies may be made beside the next forward and backward, and need to be done by that step (`Staged.fence`). All else
(buffers, a user's objects) is copied at once.

The memory is kept from one save to the next: fresh memory costs a page fault every 4 KiB, which makes a first copy
three times as slow as the next.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter, OrderedDict, deque
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CHUNK = 16 << 20
"""Bytes copied at a time, so that two threads can share the work."""

_WORTH_DEFERRING = 1 << 16
"""Bytes below which a storage is copied at once: handing it over would take longer."""


class Staged:
    """A state of which everything is copied, or will be by `fence`."""

    def __init__(self, state: dict[str, Any], copying: Copying) -> None:
        self.state = state
        """Equal to what was staged and sharing no memory with it; tensors on the CPU. Whole after `wait`."""
        self._copying = copying

    @property
    def is_fenced(self) -> bool:
        """Whether the original may be changed."""
        return self._copying.is_fenced

    def fence(self) -> None:
        """Return when the original may be changed: at once, or when its copies are made (the caller helps)."""
        self._copying.fence()

    def wait(self) -> None:
        """Make the copies, and return when all are made; for another thread than the one that calls `fence`."""
        self._copying.wait()

    @property
    def changed(self) -> bool:
        """Whether something was changed before it was copied, so that the copy is of no one moment.

        Meant for after `wait`. In-place operations on a tensor are seen, those on its `.data` are not.
        """
        return self._copying.changed


class Stager:
    """Stages one state after another in the same memory."""

    def __init__(self) -> None:
        self._memory: list[torch.Tensor] = []

    def stage(self, state: dict[str, Any], steady: Iterable[torch.Tensor] = ()) -> Staged:
        """Copy a state, which `plain_state` has passed. The one staged before must not be needed any more.

        Args:
            state: what to copy.
            steady: tensors that do not change before the caller calls `fence`.
        """
        staging = _Staging(self._memory, steady)
        copied = staging.copy(state)
        self._memory = staging.taken
        return Staged(copied, staging.copying)


class Copying:
    """Copies yet to be made. Two threads can make them together: the one that saves and the one that trains."""

    def __init__(self) -> None:
        self._left: deque[tuple[torch.Tensor, torch.Tensor]] = deque()
        self._versions: list[tuple[torch.Tensor, int]] = []
        self._events: list[torch.cuda.Event] = []
        self._sources: list[torch.Tensor] = []
        self._lock = threading.Condition()
        self._open = 0
        self.is_fenced = True
        self.changed = False

    def add(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy these bytes, both on the CPU, later."""
        pairs = list(zip(target.split(_CHUNK), source.split(_CHUNK), strict=True))
        self._left.extend(pairs)
        self._open += len(pairs)
        self.is_fenced = False

    def watch(self, tensor: torch.Tensor) -> None:
        """Notice if this tensor is changed before the copies are made."""
        self._versions.append((tensor, tensor._version))

    def add_on_gpu(self, event: torch.cuda.Event, sources: Iterable[torch.Tensor]) -> None:
        """Copies that a GPU makes, all done when the event has come; the sources are kept for so long."""
        self._events.append(event)
        self._sources.extend(sources)
        self.is_fenced = False

    def fence(self) -> None:
        """See `Staged.fence`."""
        if self.is_fenced:
            return
        self._copy_what_is_left()
        with self._lock:
            self._lock.wait_for(lambda: self._open == 0)
        for event in self._events:
            # The GPU waits, not this thread: what it is given from now on comes after the copies.
            torch.cuda.current_stream(event.device).wait_event(event)
        self._look_for_changes()
        self.is_fenced = True

    def wait(self) -> None:
        """See `Staged.wait`."""
        self._copy_what_is_left()
        with self._lock:
            self._lock.wait_for(lambda: self._open == 0)
        for event in self._events:
            event.synchronize()
        self._look_for_changes()
        self._sources.clear()

    def _copy_what_is_left(self) -> None:
        while True:
            try:
                target, source = self._left.popleft()
            except IndexError:
                return
            _copy_bytes(target, source)
            with self._lock:
                self._open -= 1
                self._lock.notify_all()

    def _look_for_changes(self) -> None:
        with self._lock:
            # Looked at once, when the copies have just been made: from the fence on, the originals may change.
            watched, self._versions = self._versions, []
            if any(tensor._version != version for tensor, version in watched):
                self.changed = True


class _Staging:
    """The copying of one state."""

    def __init__(self, memory: list[torch.Tensor], steady: Iterable[torch.Tensor]) -> None:
        self.copying = Copying()
        self.taken: list[torch.Tensor] = []
        self._memory = memory
        self._free: dict[tuple[int, bool], list[torch.Tensor]] | None = None
        self._steady = {_key(tensor) for tensor in steady if _is_strided(tensor)}
        self._storages: dict[int, torch.Tensor] = {}
        self._done: dict[int, Any] = {}
        self._on_gpus: dict[tuple[torch.device, bool], list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def copy(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state's copy, of which a part may yet have to be made."""
        self._free = _keep(self._memory, _needs(state))
        copied: dict[str, Any] = self._visit(state)
        for (device, steady), pairs in self._on_gpus.items():
            self._copy_from_gpu(device, steady, pairs)
        return copied

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
            self._start_copy(target, source, tensor)
        return self._storages[key]

    def _take(self, source: torch.Tensor) -> torch.Tensor:
        assert self._free is not None
        pinned = source.device.type == "cuda"
        free = self._free.get((source.nbytes, pinned))
        return free.pop() if free else torch.empty(source.nbytes, dtype=torch.uint8, pin_memory=pinned)

    def _start_copy(self, target: torch.Tensor, source: torch.Tensor, tensor: torch.Tensor) -> None:
        steady = _key(tensor) in self._steady and source.nbytes >= _WORTH_DEFERRING
        if steady:
            self.copying.watch(tensor)
        if source.device.type == "cuda":
            self._on_gpus.setdefault((source.device, steady), []).append((target, source))
        elif source.device.type == "cpu" and steady:
            self.copying.add(target, source)
        else:
            target.copy_(source)

    def _copy_from_gpu(
        self, device: torch.device, steady: bool, pairs: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        """What is steady on a stream of its own, beside the next computation; the rest before that computation.

        All at once: a stream and an event for each tensor would hold up the training of a model of a thousand.
        """
        current = torch.cuda.current_stream(device)
        stream = _side_stream(device) if steady else current
        targets, sources = map(list, zip(*pairs, strict=True))
        with torch.cuda.stream(stream):
            if steady:
                stream.wait_stream(current)
            torch._foreach_copy_(targets, sources, non_blocking=True)
            event = torch.cuda.Event(blocking=True)  # who waits for it leaves the core to others
            event.record(stream)
        self.copying.add_on_gpu(event, sources)


_IMMUTABLE = (
    type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout, torch.Size
)  # fmt: skip

_SIDE_STREAMS: dict[torch.device, torch.cuda.Stream] = {}


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _SIDE_STREAMS:
        _SIDE_STREAMS[device] = torch.cuda.Stream(device)
    return _SIDE_STREAMS[device]


def _copy_bytes(target: torch.Tensor, source: torch.Tensor) -> None:
    # NumPy's copy is one thread's; torch's would start a team of threads beside the one that trains.
    target.numpy()[...] = source.numpy()


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
