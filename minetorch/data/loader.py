"""An ordinary DataLoader, shared out over ranks."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple, cast

import torch
from torch.utils.data import DataLoader, IterableDataset

from minetorch.data.checks import has_own_batches, sampler_of, samples_per_batch
from minetorch.data.fetching import Fetcher, ShowDataset, as_it_is
from minetorch.data.identity import EpochData, fingerprint, first_keys
from minetorch.data.order import EpochPlan, Share, count_chunks, derive_seed, share_of
from minetorch.data.sampler import PlanSampler, global_order, length_of
from minetorch.data.sketch import Sketch
from minetorch.data.stream import Portion, SharedStream, StreamPosition, Turns
from minetorch.data.workers import OutlastSignals, start_workers
from minetorch.distributed.world import World
from minetorch.errors import ConfigurationError


class Part(NamedTuple):
    """A virtual shard's part of an iteration."""

    shard: int
    counted: int
    data: Any


class Batch(NamedTuple):
    """One rank's batch of one iteration."""

    data: Any
    """What the user's `collate_fn` made, on the worker's device."""
    counted: int
    """Samples in `data` that count; 0 where the rank only keeps the others company."""
    total: int
    """Samples of all ranks in this iteration."""
    units: int
    """How far this iteration moves the position in the epoch, on all ranks together."""
    indices: Sequence[Any]
    """Which samples are in `data`: their indices in the dataset, or in a stream their places in the epoch."""
    stream: StreamPosition | None = None
    """Where the readers of an IterableDataset stand after this iteration."""
    position: int = 0
    """With virtual shards: units of the epoch before this iteration."""
    shards: Sequence[tuple[int, int]] = ()
    """With virtual shards: number and samples of each that this rank has; `data` is a list of their batches."""

    def parts(self) -> Iterator[Part]:
        """The virtual shards."""
        return (Part(*shard, data) for shard, data in zip(self.shards, self.data, strict=True))


class Epoch(NamedTuple):
    """One rank's part of an epoch, or of the rest of one."""

    iterations: int | None
    """Iterations that are left in it; None for a stream without a length."""
    batches: Iterator[Batch]
    data: EpochData
    """What tells its data from other data."""
    start: int = 0
    """Units of it that were seen before."""
    first_keys: str = ""
    """The keys that it begins with, for a message; "" for a stream."""


class RankLoader:
    """One rank's share of a DataLoader, as `trainer.train_dataloader` and `trainer.val_dataloader`.

    Iterating yields this rank's batches of the current epoch, on the worker's device. All else (`dataset`,
    `batch_size`, …) is answered by the user's DataLoader.
    """

    _stream_type: Callable[..., SharedStream] = SharedStream

    def __init__(
        self,
        source: DataLoader[Any],
        world: World,
        *,
        seed: int,
        chunk: int,
        split: bool,
        training: bool,
        place: Callable[[Any], Any] | None,
    ) -> None:
        self.source = source
        self.current_epoch = 1
        self.observe: Callable[[Iterator[Batch]], Iterator[Batch]] | None = None
        """What the batches of an epoch are to pass through, for a plugin to see when they come."""
        self._world = world
        self._seed = seed
        self._chunk = chunk
        self._split = split
        self._place = place
        self.is_training = training
        self.is_stream = isinstance(source.dataset, IterableDataset)
        self.sketch: Sketch = []
        """What the first samples looked like that the newest pass over a stream has read."""
        self.read = 0
        """How many samples of the epoch a stream has given, on all ranks together."""
        self._own_batches = has_own_batches(source)
        self._kept: FedLoader | None = None

    def alone(self) -> RankLoader:
        """The whole data, as a world of one has it: for code that only one rank runs."""
        world = World(device=self._world.device)
        loader = share_out(self.source, world, seed=self._seed, training=self.is_training, place=self._place)
        loader.current_epoch = self.current_epoch
        return loader

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)

    def __len__(self) -> int:
        """Iterations of a whole epoch. Raises TypeError where the stream or the sampler has no length."""
        iterations = self.iterations
        if iterations is None:
            raise TypeError(
                f"{type(self.source.dataset if self.is_stream else sampler_of(self.source)).__name__} has no length"
            )
        return iterations

    @property
    def iterations(self) -> int | None:
        """Iterations of a whole epoch; None where the stream or the sampler has no length."""
        if self.is_stream:
            return self._stream_iterations(0)
        units = length_of(sampler_of(self.source))
        return None if units is None else len(self._plan(range(units), 0))

    @property
    def global_batch_size(self) -> int | None:
        """Samples in a batch of all workers; None where a batch sampler or the dataset makes the batches."""
        return None if samples_per_batch(self.source) is None else self._chunk

    def __iter__(self) -> Iterator[Any]:
        return (batch.data for batch in self.epoch(self.current_epoch).batches if batch.counted)

    def traits(self) -> dict[str, Any]:
        """What is known of the loader without reading any data, by the words for it; the same on every rank."""
        source = self.source
        return {
            "its kind": "an IterableDataset" if self.is_stream else "a Dataset",
            "the length of its dataset": length_of(source.dataset),
            "the length of its sampler": None if self.is_stream else length_of(sampler_of(source)),
            "its batch_size": source.batch_size,
            "its drop_last": bool(source.drop_last),
            "its num_workers": source.num_workers if self.is_stream else None,
            "its seed": self._seed,
        }

    def epoch(
        self, epoch: int, start: int = 0, stream: StreamPosition | None = None, *, after_samples: int | None = None
    ) -> Epoch:
        """Turn to an epoch, of which `start` units were seen before.

        In training every rank gets the same number of batches. In validation a rank gets none where there is
        nothing left for it.

        Args:
            epoch: its number, from 1.
            start: units that were seen before, at whatever world size.
            stream: where the readers of an IterableDataset stand; None where only `start` is known.
            after_samples: in place of `start`, how many samples were seen before: where they were other units.
        """
        self.current_epoch = epoch
        if self.is_stream:
            start = start if after_samples is None else after_samples
            stream = stream or StreamPosition.after(start, max(1, self.source.num_workers), self._chunk)
            batches = self._observed(self._placed(self._from_stream(stream)))
            return Epoch(self._stream_iterations(start), batches, self._data(()), start)
        units = global_order(sampler_of(self.source), self._seed, epoch, length_of(self.source.dataset) or 0)
        if after_samples is not None:
            start = _whole_batches(after_samples, units) if self._own_batches else after_samples
        plan = self._plan(units, start)
        shares = PlanSampler(plan, batches=self._own_batches, split=self._split)
        batches = self._observed(self._placed(self._from_plan(shares)))
        return Epoch(len(plan), batches, self._data(units), start, first_keys(units, self.source.dataset))

    def _data(self, units: Sequence[Any]) -> EpochData:
        dataset, samples = self.source.dataset, length_of(self.source.dataset)
        if self.is_stream:
            return EpochData("stream", samples, None, "", type(dataset).__name__, self._seed)
        unit: Literal["batch", "sample"] = "batch" if self._own_batches else "sample"
        sampler = type(sampler_of(self.source)).__name__
        return EpochData(unit, samples, len(units), fingerprint(units, dataset), sampler, self._seed)

    def _plan(self, units: Sequence[Any], start: int) -> EpochPlan[Any]:
        return EpochPlan(
            units,
            self._chunk,
            self._world.rank,
            self._world.size,
            start,
            drop_last=not self._own_batches and bool(getattr(self.source.batch_sampler, "drop_last", False)),
        )

    def _stream_iterations(self, start: int) -> int | None:
        """Iterations after `start` samples, or None where the dataset has no length."""
        length = length_of(self.source.dataset)
        if length is None:
            return None
        return count_chunks(max(0, length - start), self._chunk, drop_last=bool(self.source.drop_last))

    def _observed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return batches if self.observe is None else self.observe(batches)

    def _placed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        place = self._place
        for batch in batches:
            if batch.counted or self.is_training:
                yield batch if place is None else batch._replace(data=place(batch.data))

    def _from_plan(self, shares: PlanSampler) -> Iterator[Batch]:
        plan = shares.plan
        at, end = plan.start, len(plan.units)
        taken: deque[Share] = deque()  # by workers, ahead of what has come
        for data in self._fetched(shares.tasks(self._samples_seed(), taken), self.source.num_workers):
            share = taken.popleft()
            yield Batch(data, share.counted, share.total, min(plan.chunk, end - at), share.units)
            at += plan.chunk
        if taken:
            raise ConfigurationError(
                f"{type(self.source.dataset).__name__} let a StopIteration through for a sample, which ended the epoch "
                f"at {at} of {end} units. Let it return the sample, or raise another error."
            )

    def _from_stream(self, position: StreamPosition) -> Iterator[Batch]:
        readers, workers = len(position.seen), self.source.num_workers
        if readers != max(1, workers):
            # What is in a stream, and in which order, depends on its readers: the epoch ends as it began.
            workers = readers
        captures = self.is_training and self._world.is_main
        turns = Turns(position, self.current_epoch, self._samples_seed(), captures)
        self.sketch, self.read = [], sum(position.seen)
        portion: Portion
        for turn, portion in enumerate(self._fetched(turns.tasks(), workers)):
            reader = turn % readers
            if portion.sketch and not self.sketch:
                self.sketch = portion.sketch
            if portion.ended:
                turns.ended.add(reader)
            if portion.total:
                position = position.moved(reader, portion)
                self.read += portion.total
                yield self._streamed(portion, position)

    def _streamed(self, portion: Portion, position: StreamPosition) -> Batch:
        total, world = portion.total, self._world
        end = sum(position.seen)
        places = share_of(range(end - total, end), world.rank, world.size).units
        return Batch(portion.data, portion.counted, total, total, places, position)

    def _samples_seed(self) -> int:
        return derive_seed(self._seed, "training" if self.is_training else "validation", self.current_epoch)

    def _fetched(self, tasks: Iterable[Any], workers: int) -> Iterator[Any]:
        """What a DataLoader makes of the tasks."""
        loader = self._kept if self._kept is not None and not self._kept.is_busy else None
        if loader is None or loader.workers != workers:
            loader = FedLoader(self.source, self._fetcher(), workers, keeps_workers=self._kept is None)
        if loader.keeps_workers:
            self._kept = loader
        # Every rank's workers begin alike with a stream: one that shuffles must be the same on all of them.
        rank = 0 if self.is_stream else self._world.rank
        return loader.results(tasks, derive_seed(self._seed, "workers", self.current_epoch, rank))

    def end_workers(self) -> None:
        """End those that live on from one epoch to the next, if there are any; a later pass starts new ones."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    def _fetcher(self) -> Fetcher | SharedStream:
        source, world = self.source, self._world
        if not self.is_stream:
            return Fetcher(source.dataset, source.collate_fn, batched=source.batch_sampler is not None)
        return self._stream_type(
            cast("IterableDataset[Any]", source.dataset),
            source.collate_fn,
            chunk=self._chunk,
            granule=samples_per_batch(source) or 1,
            rank=world.rank,
            world_size=world.size,
            drop_last=bool(source.drop_last),
            batched=source.batch_size is not None,
        )


class Feed:
    """What a DataLoader takes for its sampler: the tasks of a pass."""

    tasks: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tasks)


class FedLoader:
    """A DataLoader with the source's settings, that is given what its workers are to do for each pass.

    Without workers, and with nothing to pin, the tasks are done right here: the DataLoader would only add to it.
    """

    def __init__(
        self, source: DataLoader[Any], fetcher: Fetcher | SharedStream, workers: int, *, keeps_workers: bool
    ) -> None:
        """Start nothing yet.

        Args:
            source: the user's DataLoader.
            fetcher: does the tasks.
            workers: the number of worker processes.
            keeps_workers: let them live on after a pass, where the source is made so.
        """
        self.workers = workers
        self._fetcher = fetcher
        self.keeps_workers = keeps_workers and workers > 0 and bool(source.persistent_workers)
        self.is_busy = False
        """Whether a pass is under way. Workers that live on can serve only one."""
        self._feed = Feed()
        self._generator = torch.Generator()
        self._loader: DataLoader[Any] = DataLoader(
            fetcher,
            batch_size=None,
            sampler=self._feed,
            collate_fn=as_it_is,
            generator=self._generator,
            worker_init_fn=OutlastSignals(ShowDataset(source.worker_init_fn)),
            **_settings(source, workers, keeps_workers=self.keeps_workers),
        )

    def results(self, tasks: Iterable[Any], seed: int) -> Iterator[Any]:
        """Begin a pass: what comes of each task, in their order. `seed` is that of the workers' own generators."""
        if not (self.workers or self._loader.pin_memory):
            return map(self._fetcher.__getitem__, tasks)
        return self._results_of_loader(tasks, seed)

    def _results_of_loader(self, tasks: Iterable[Any], seed: int) -> Iterator[Any]:
        self.is_busy = True
        try:
            self._feed.tasks = tasks
            self._generator.manual_seed(seed)
            yield from start_workers(self._loader)
        finally:
            self.is_busy = False

    def close(self) -> None:
        """End the workers. Python's own end kills those that live on, and what they have in TMPDIR stays there."""
        iterator = self._loader._iterator
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]


def mark_last(batches: Iterator[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Each batch, and whether it is the last. Fetches one batch ahead to know."""
    batches = iter(batches)
    for batch in batches:
        for following in batches:
            yield batch, False
            batch = following
        yield batch, True


def share_out(
    source: DataLoader[Any],
    world: World,
    *,
    seed: int = 0,
    split_batches: bool = False,
    training: bool = True,
    place: Callable[[Any], Any] | None = None,
) -> RankLoader:
    """Make this rank's loader out of the user's, which is left as it is.

    Args:
        source: any DataLoader: shuffling or not, with a sampler or batch sampler, workers, or an
            IterableDataset that is the same on every rank.
        world: this worker's place.
        seed: what the order of every epoch derives from.
        split_batches: a batch of the source is that of all ranks together, not that of each.
        training: every rank gets the same number of batches; else none is repeated to make it so.
        place: moves a batch to the device.

    Raises:
        ConfigurationError: a batch that is to be split is smaller than the world, or cannot be split.
    """
    batch_size = samples_per_batch(source)
    own_batches = has_own_batches(source)
    if split_batches:
        _check_split(source, batch_size, own_batches, world)
    chunk = (batch_size or 1) if split_batches else (batch_size or 1) * world.size
    if own_batches and split_batches:
        chunk = 1
    return RankLoader(source, world, seed=seed, chunk=chunk, split=split_batches, training=training, place=place)


def _settings(source: DataLoader[Any], workers: int, *, keeps_workers: bool) -> dict[str, Any]:
    """The source's settings that have nothing to do with order."""
    settings: dict[str, Any] = {"num_workers": workers, "pin_memory": source.pin_memory}
    if workers:
        names = ["timeout", "multiprocessing_context", "prefetch_factor"] if source.num_workers else []
        settings |= {name: getattr(source, name) for name in names} | {"persistent_workers": keeps_workers}
    return settings


def _whole_batches(samples: int, batches: Sequence[Any]) -> int:
    """How many of the first batches have no more than so many samples."""
    return bisect_right(list(accumulate(map(len, batches))), samples)


def _check_split(source: DataLoader[Any], batch_size: int | None, own_batches: bool, world: World) -> None:
    if batch_size is None and not own_batches:
        raise ConfigurationError(
            "split_batches=True needs batches to split, but the DataLoader has batch_size=None. "
            "Give it a batch_size, or leave split_batches=False."
        )
    if batch_size is not None and batch_size < world.size:
        raise ConfigurationError(
            f"split_batches=True splits each batch over {world.size} workers, but batch_size={batch_size}. "
            f"Use a batch_size of {world.size} or more, or fewer workers."
        )
