"""An ordinary DataLoader, shared out over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from minetorch.data.order import EpochPlan, derive_seed, share_of
from minetorch.data.sampler import PlanSampler, global_order
from minetorch.data.stream import CollateShare, SharedStream
from minetorch.data.workers import OutlastSignals, start_workers
from minetorch.errors import ConfigurationError
from minetorch.world import World


@dataclass(frozen=True, slots=True)
class Batch:
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


class Epoch(NamedTuple):
    """One rank's part of an epoch, or of the rest of one."""

    iterations: int | None
    """Iterations that are left in it; None for a stream without a length."""
    batches: Iterator[Batch]


class RankLoader:
    """One rank's share of a DataLoader, as `trainer.train_dataloader` and `trainer.val_dataloader`.

    Iterating yields this rank's batches of the current epoch, on the worker's device. All else (`dataset`,
    `batch_size`, …) is answered by the user's DataLoader.
    """

    def __init__(
        self,
        source: DataLoader[Any],
        loader: DataLoader[Any],
        shares: PlanSampler | SharedStream,
        world: World,
        *,
        seed: int,
        chunk: int,
        training: bool,
        place: Callable[[Any], Any] | None,
    ) -> None:
        self.source = source
        self.current_epoch = 1
        self._loader = loader
        self._shares = shares
        self._world = world
        self._seed = seed
        self._chunk = chunk
        self._training = training
        self._place = place

    def alone(self) -> RankLoader:
        """The whole data, as a world of one has it: for code that only one rank runs."""
        world = World(device=self._world.device)
        loader = share_out(self.source, world, seed=self._seed, training=self._training, place=self._place)
        loader.current_epoch = self.current_epoch
        return loader

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)

    def __len__(self) -> int:
        """Iterations of a whole epoch. Raises TypeError for a stream without a length."""
        iterations = (
            self._shares.iterations()
            if isinstance(self._shares, SharedStream)
            else len(self._plan(lambda units: range(len(units)), 0))
        )
        if iterations is None:
            raise TypeError(f"{type(self.source.dataset).__name__} has no length")
        return iterations

    def __iter__(self) -> Iterator[Any]:
        return (batch.data for batch in self.epoch(self.current_epoch).batches if batch.counted)

    def epoch(self, epoch: int, start: int = 0) -> Epoch:
        """Turn to an epoch, of which `start` units were seen before.

        In training every rank gets the same number of batches. In validation a rank gets none where there is
        nothing left for it.
        """
        self.current_epoch = epoch
        streaming = isinstance(self._shares, SharedStream)
        # Every rank's workers draw alike from a stream: one that shuffles must be the same on all of them.
        rank = 0 if streaming else self._world.rank
        assert self._loader.generator is not None
        self._loader.generator.manual_seed(derive_seed(self._seed, "workers", epoch, rank))
        if isinstance(self._shares, SharedStream):
            iterations = self._shares.prepare(epoch, start)
            return Epoch(iterations, self._placed(self._from_stream(start)))
        self._shares.plan = self._plan(lambda units: global_order(units, self._seed, epoch), start)
        return Epoch(len(self._shares), self._placed(self._from_plan(self._shares)))

    def _plan(self, order: Callable[[Any], Sequence[Any]], start: int) -> EpochPlan[Any]:
        assert isinstance(self._shares, PlanSampler)
        batches = self._shares.batches
        return EpochPlan(
            order(self.source.batch_sampler if batches else _sampler_of(self.source)),
            self._chunk,
            self._world.rank,
            self._world.size,
            start,
            drop_last=not batches and bool(getattr(self.source.batch_sampler, "drop_last", False)),
        )

    def _placed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        place = self._place
        for batch in batches:
            if batch.counted or self._training:
                yield batch if place is None else replace(batch, data=place(batch.data))

    def _from_plan(self, shares: PlanSampler) -> Iterator[Batch]:
        plan = shares.plan
        at, end = plan.start, len(plan.units)
        for share, data in zip(shares.shares(), start_workers(self._loader), strict=True):
            yield Batch(data, share.counted, share.total, min(plan.chunk, end - at), share.units)
            at += plan.chunk

    def _from_stream(self, at: int) -> Iterator[Batch]:
        for shared in start_workers(self._loader):
            places = share_of(range(at, at + shared.total), self._world.rank, self._world.size).units
            yield Batch(shared.data, shared.counted, shared.total, shared.total, places)
            at += shared.total


class SingleSampler:
    """Feeds single indices to a DataLoader that was asked not to batch (`batch_size=None`)."""

    def __init__(self, plans: PlanSampler) -> None:
        self.plans = plans

    def __len__(self) -> int:
        """Iterations of the plan."""
        return len(self.plans)

    def __iter__(self) -> Iterator[Any]:
        return (indices[0] for indices in self.plans)


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
    batch_size = _batch_size(source)
    own_batches = batch_size is None and source.batch_sampler is not None
    if split_batches:
        _check_split(source, batch_size, own_batches, world)
    chunk = (batch_size or 1) if split_batches else (batch_size or 1) * world.size
    if own_batches and split_batches:
        chunk = 1
    shares, loader = (
        _stream_loader(source, chunk, world)
        if isinstance(source.dataset, IterableDataset)
        else _plan_loader(source, PlanSampler(batches=own_batches, split=split_batches))
    )
    return RankLoader(source, loader, shares, world, seed=seed, chunk=chunk, training=training, place=place)


def _plan_loader(source: DataLoader[Any], plans: PlanSampler) -> tuple[PlanSampler, DataLoader[Any]]:
    batched = source.batch_sampler is not None
    how: dict[str, Any] = {"batch_sampler": plans} if batched else {"sampler": SingleSampler(plans), "batch_size": None}
    return plans, DataLoader(source.dataset, collate_fn=source.collate_fn, **how, **_settings(source))


def _stream_loader(source: DataLoader[Any], chunk: int, world: World) -> tuple[SharedStream, DataLoader[Any]]:
    assert isinstance(source.dataset, IterableDataset)
    stream = SharedStream(source.dataset, chunk, world.rank, world.size, drop_last=source.drop_last)
    collate = CollateShare(source.collate_fn, batched=source.batch_size is not None)
    return stream, DataLoader(stream, batch_size=None, collate_fn=collate, **_settings(source))


def _settings(source: DataLoader[Any]) -> dict[str, Any]:
    """The source's settings that have nothing to do with order."""
    names = ["num_workers", "pin_memory", "timeout", "multiprocessing_context"]
    if source.num_workers:
        names += ["prefetch_factor", "persistent_workers"]
    own = {"generator": torch.Generator(), "worker_init_fn": OutlastSignals(source.worker_init_fn)}
    return {name: getattr(source, name) for name in names} | own


def _batch_size(source: DataLoader[Any]) -> int | None:
    """Samples in a batch, or None where the user's own batch sampler says, or nothing is batched."""
    if type(source.batch_sampler) is BatchSampler:
        return source.batch_sampler.batch_size
    return source.batch_size


def _sampler_of(source: DataLoader[Any]) -> Any:
    return source.batch_sampler.sampler if type(source.batch_sampler) is BatchSampler else source.sampler


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
