"""An IterableDataset shared out over ranks, and where its readers stand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset, IterableDataset, IterDataPipe, get_worker_info
from torch.utils.data.graph_settings import apply_random_seed, apply_sharding

from minetorch.data.fetching import draws_nothing_to_collate, generators_apart
from minetorch.data.order import Share, derive_seed, share_of
from minetorch.data.randomness import reseed
from minetorch.data.sketch import Sketch, sketch


@dataclass(frozen=True)
class StreamPosition:
    """Where the readers of a stream stand in an epoch: its DataLoader's workers, or the one that does without.

    It counts what has come out of each reader, and not what a worker has fetched in advance.
    """

    seen: tuple[int, ...]
    """Samples that each reader has given."""
    next: int = 0
    """The reader whose turn it is."""
    states: tuple[Any, ...] = ()
    """Each reader's dataset's own state, by where it comes from (see `SharedStream`); none where it has none."""
    ended: tuple[int, ...] = ()
    """Readers known to have no more. A dataset's state does not tell: at its end it may be as at its beginning."""

    @classmethod
    def after(cls, samples: int, readers: int, chunk: int) -> StreamPosition:
        """When `readers` readers have given so many samples, `chunk` at a time and by turns."""
        if readers == 1:
            return cls((samples,))
        chunks = samples // chunk
        seen = tuple(len(range(reader, chunks, readers)) * chunk for reader in range(readers))
        return cls(seen, chunks % readers)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> StreamPosition:
        """What `to_plain` gave."""
        return cls(tuple(plain["seen"]), plain["next"], tuple(plain["states"]), tuple(plain["ended"]))

    def to_plain(self) -> dict[str, Any]:
        """As lists and numbers, for a checkpoint."""
        return {
            "seen": list(self.seen),
            "next": self.next,
            "states": list(self.states),
            "ended": list(self.ended),
        }

    def moved(self, reader: int, portion: Portion) -> StreamPosition:
        """When `reader` has given one portion more."""
        seen = tuple(count + portion.total * (number == reader) for number, count in enumerate(self.seen))
        states = self.states
        if portion.state is not None:
            own = states or (None,) * len(seen)
            states = tuple(portion.state if number == reader else old for number, old in enumerate(own))
        ended = (*self.ended, reader) if portion.ended else self.ended
        return StreamPosition(seen, (reader + 1) % len(seen), states, ended)


@dataclass(frozen=True)
class Begin:
    """A reader's first task in a pass: go where it stands, and give a chunk. None is the task to give one more."""

    epoch: int
    seed: int
    """What the epoch's randomness derives from."""
    seen: int
    state: Any
    is_turn: bool
    """Whether to give a chunk; else the reader has had its turn, and only goes where it stands."""
    captures: bool
    """Whether the dataset's own state must come with each chunk."""
    has_ended: bool = False
    """Whether the reader is known to have no more."""


class Portion(NamedTuple):
    """What comes out of a reader at once."""

    data: Any = None
    """The rank's share of a chunk, collated."""
    counted: Any = 0
    """Samples in it that count; with virtual shards, `data` and this are lists."""
    total: int = 0
    """Samples of all ranks; 0: it was not the reader's turn, or there are no more."""
    state: Any = None
    """The dataset's own, right after the chunk's last sample."""
    ended: bool = False
    """Whether the reader has no more."""
    sketch: Sketch | None = None
    """With the first samples of a pass, what they look like."""


@dataclass
class Turns:
    """The tasks of one pass, in the order in which a DataLoader hands them to its workers: by turns, from the first."""

    position: StreamPosition
    epoch: int
    seed: int
    captures: bool
    ended: set[int] = field(default_factory=set)
    """Readers that have no more; when all have ended, so do the tasks."""

    def tasks(self) -> Iterator[Begin | None]:
        """For each reader a beginning, then a chunk of each by turns."""
        position = self.position
        states = position.states or (None,) * len(position.seen)
        for reader, (seen, state) in enumerate(zip(position.seen, states, strict=True)):
            has_ended, is_turn = reader in position.ended, reader >= position.next
            yield Begin(self.epoch, self.seed, seen, state, is_turn, self.captures, has_ended)
        while len(self.ended) < len(position.seen):
            yield None


class SharedStream(Dataset[Portion]):
    """Reads the whole stream on every rank and gives this rank's share of each chunk.

    The stream must be the same on every rank. A DataLoader worker reads a stream of its own, as torch has it:
    split it there by `torch.utils.data.get_worker_info`, as for any DataLoader.

    For the DataLoader it is no IterableDataset but one that answers tasks, since only a task reaches workers that live
    on: the epoch, and where to begin.

    A stream is taken to a place by its own `state_dict` and `load_state_dict`, on its iterator or on the dataset, or
    else by reading up to there. Its randomness is seeded once every `granule` samples of a reader, and so is the same
    at any number of ranks.
    """

    def __init__(
        self,
        dataset: IterableDataset[Any],
        collate: Callable[[Any], Any],
        *,
        chunk: int,
        granule: int,
        rank: int,
        world_size: int,
        drop_last: bool,
        batched: bool,
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.chunk = chunk
        self.granule = granule
        self.rank = rank
        self.world_size = world_size
        self.drop_last = drop_last
        self.batched = batched
        self._samples: Iterator[Any] = iter(())
        self._task = Begin(0, 0, 0, None, is_turn=False, captures=False)

    def __getitem__(self, task: Begin | None) -> Portion:
        """Begin a pass, or go on with it."""
        with generators_apart():
            if task is not None:
                self._begin(task)
                if not task.is_turn:
                    return Portion()
            return self._portion(is_first=task is not None)

    def _begin(self, task: Begin) -> None:
        self._task = replace(task, seen=0, state=None)
        if task.has_ended:
            self._samples = iter(())
            return
        self._reseed("stream")
        self._split_pipe()
        if callable(set_epoch := getattr(self.dataset, "set_epoch", None)):
            set_epoch(task.epoch)
        state = task.state or {}
        if "dataset" in state:
            self.dataset.load_state_dict(state["dataset"])  # type: ignore[attr-defined]
        self._samples = iter(self.dataset)
        if "iterator" in state:
            self._samples.load_state_dict(state["iterator"])  # type: ignore[attr-defined]
        if state:
            self._task = replace(self._task, seen=task.seen)
        else:
            while self._task.seen < task.seen and self._read(min(self.chunk, task.seen - self._task.seen)):
                pass

    def _split_pipe(self) -> None:
        """Give a worker its part of a DataPipe, as torch's DataLoader does: `sharding_filter` only marks where."""
        info = get_worker_info()
        if info is None or not isinstance(self.dataset, IterDataPipe):
            return
        # What is shuffled before it is split must be shuffled alike in all workers.
        generator = torch.Generator().manual_seed(derive_seed(self._task.seed, "pipe"))
        apply_random_seed(self.dataset, generator)
        apply_sharding(self.dataset, info.num_workers, info.id)

    def _portion(self, *, is_first: bool) -> Portion:
        first = self._task.seen
        chunk = self._read(self.chunk)
        if not chunk or (self.drop_last and len(chunk) < self.chunk):
            self._samples = iter(())
            return Portion(ended=True)
        ended = len(chunk) < self.chunk
        state = self._state() if self._task.captures and not ended else None
        data, counted = self._collated(chunk, first)
        look = sketch(chunk) if is_first and self.world_size > 1 else None
        return Portion(data, counted, len(chunk), state, ended, look)

    def _collated(self, chunk: list[Any], first: int) -> tuple[Any, Any]:
        """This rank's share of a chunk that begins at place `first` of the reader, and its samples that count."""
        share = share_of(chunk, self.rank, self.world_size, first)
        return self._collate(share), share.counted

    def _collate(self, share: Share) -> Any:
        if not draws_nothing_to_collate(self.collate):
            self._reseed("collate", share.first)
        return self.collate(share.units if self.batched else share.units[0])

    def _read(self, count: int) -> list[Any]:
        """The next samples; fewer than `count` where there are no more."""
        samples: list[Any] = []
        seen = self._task.seen
        while len(samples) < count:
            into = (seen + len(samples)) % self.granule
            if not into:
                self._reseed("samples", seen + len(samples))
            wanted = min(self.granule - into, count - len(samples))
            part = list(islice(self._samples, wanted))
            samples += part
            if len(part) < wanted:
                self._samples = iter(())
                break
        self._task = replace(self._task, seen=seen + len(samples))
        return samples

    def _reseed(self, *path: int | str) -> None:
        info = get_worker_info()
        reseed(derive_seed(self._task.seed, 0 if info is None else info.id, *path))

    def _state(self) -> dict[str, Any] | None:
        for where, holder in (("iterator", self._samples), ("dataset", self.dataset)):
            if hasattr(holder, "state_dict") and hasattr(holder, "load_state_dict"):
                state = holder.state_dict()
                # To come out of a worker it is copied anyway.
                return {where: copy.deepcopy(state) if get_worker_info() is None else state}
        return None
