"""Virtual shards: every chunk is split into so many parts at any world size, and each rank has a run of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, IterableDataset

from minetorch.data.loader import Batch, RankLoader, plain_settings, plan_loader, samples_per_batch
from minetorch.data.order import Share, share_of, split_evenly
from minetorch.data.sampler import PlanSampler
from minetorch.data.stream import SharedStream
from minetorch.data.workers import start_workers
from minetorch.errors import ConfigurationError
from minetorch.world import World


class ShardSampler(PlanSampler):
    """Feeds a DataLoader a batch for each of the rank's shards that has a sample.

    Its plan is that of a world of as many ranks as there are shards.
    """

    def __init__(self, own: range, *, batches: bool) -> None:
        super().__init__(batches=batches, split=True)
        self._own = own

    def shares(self) -> Iterator[Share[Any]]:
        """What the DataLoader is to fetch, in samples."""
        return (share for shares in self.by_iteration() for share in shares if share.counted)

    def by_iteration(self) -> Iterator[list[Share[Any]]]:
        """The shares of all of the rank's shards, also of those without a sample."""
        plan = self.plan
        plans = [replace(plan, rank=shard) for shard in self._own]
        for iteration in range(len(plan)):
            yield [self._in_samples(p, iteration) if self.batches else p[iteration] for p in plans]


class StreamedShards(NamedTuple):
    """What comes out of a loader of a stream by shards: the batch of each, its samples, and those of all ranks."""

    data: list[Any]
    counted: list[int]
    total: int


class ShardStream(SharedStream):
    """Reads the whole stream on every rank and yields the rank's shards of each chunk."""

    def __init__(self, dataset: IterableDataset[Any], chunk: int, own: range, shards: int, *, drop_last: bool) -> None:
        super().__init__(dataset, chunk, own.start, shards, drop_last=drop_last)
        self._own = own

    def _share(self, chunk: list[Any]) -> Any:
        return [share_of(chunk, shard, self.world_size) for shard in self._own]


class CollateShards:
    """The user's `collate_fn`, applied to each shard with a sample. A class, so that spawned workers can have it."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate

    def __call__(self, shares: list[Share[Any]]) -> StreamedShards:
        """Collate a chunk's shares."""
        counted = [share for share in shares if share.counted]
        data = [self._collate(share.units) for share in counted]
        return StreamedShards(data, [share.counted for share in counted], shares[0].total)


class ShardLoader(RankLoader):
    """One rank's virtual shards of a DataLoader.

    The Trainer gets one `Batch` an iteration, with the batches of all the rank's shards. Iterating yields these one by
    one.
    """

    def __init__(
        self,
        source: DataLoader[Any],
        loader: DataLoader[Any],
        shares: PlanSampler | SharedStream,
        world: World,
        *,
        own: range,
        seed: int,
        chunk: int,
        training: bool,
        place: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(source, loader, shares, world, seed=seed, chunk=chunk, training=training, place=place)
        self._own = own

    def __len__(self) -> int:
        """Batches that iterating yields, or up to an iteration's more, where the last chunk is smaller."""
        return super().__len__() * len(self._own)

    def __iter__(self) -> Iterator[Any]:
        return (data for batch in self.epoch(self.current_epoch).batches for data in batch.data)

    def _from_plan(self, shares: PlanSampler) -> Iterator[Batch]:
        assert isinstance(shares, ShardSampler)
        plan, loaded = shares.plan, start_workers(self._loader)
        at = plan.start
        for own in shares.by_iteration():
            counted = [share.counted for share in own if share.counted]
            units = min(plan.chunk, len(plan.units) - at)
            yield self._batch([next(loaded) for _ in counted], counted, own[0].total, units, at)
            at += units

    def _from_stream(self) -> Iterator[Batch]:
        assert isinstance(self._shares, ShardStream)
        at = self._shares.start
        for data, counted, total in start_workers(self._loader):
            yield self._batch(data, counted, total, total, at)
            at += total

    def _batch(self, data: list[Any], counted: list[int], total: int, units: int, position: int) -> Batch:
        # Those without a sample are the last ones.
        shards = list(zip(self._own, counted, strict=False))
        return Batch(data, sum(counted), total, units, position=position, shards=shards)


def share_out_by_shards(
    source: DataLoader[Any],
    world: World,
    *,
    shards: int,
    seed: int = 0,
    training: bool = True,
    place: Callable[[Any], Any] | None = None,
) -> ShardLoader:
    """Make this rank's loader out of the user's, whose batches are those of all ranks together.

    Args:
        source: as for `share_out`.
        world: this worker's place.
        shards: into how many parts each batch is split; as many as there are ranks, or more.
        seed: what the order of every epoch derives from.
        training: every rank gets the same number of iterations; else none without a sample.
        place: moves a batch to the device.

    Raises:
        ConfigurationError: the batches are smaller than that, or there are none.
    """
    batch_size = samples_per_batch(source)
    batches = batch_size is None and source.batch_sampler is not None
    if batch_size is None and not batches:
        raise ConfigurationError(
            'elastic="exact" splits each batch into virtual shards, but the DataLoader has batch_size=None. Give it a '
            "batch_size."
        )
    if batch_size is not None and batch_size < shards:
        raise ConfigurationError(
            f'elastic="exact" splits each batch into virtual_shards={shards}, but batch_size={batch_size}. Use a '
            f"batch_size of {shards} or more, or virtual_shards={batch_size} or fewer."
        )
    chunk, own = batch_size or 1, split_evenly(shards, world.size, world.rank)
    shares: ShardSampler | ShardStream
    if isinstance(source.dataset, IterableDataset):
        shares = ShardStream(source.dataset, chunk, own, shards, drop_last=source.drop_last)
        collate = CollateShards(source.collate_fn)
        loader: DataLoader[Any] = DataLoader(shares, batch_size=None, collate_fn=collate, **plain_settings(source))
    else:
        shares = ShardSampler(own, batches=batches)
        _, loader = plan_loader(source, shares)
    # To the order of samples, the shards are the ranks.
    stand_in = World(rank=own.start, size=shards, device=world.device)
    return ShardLoader(
        source, loader, shares, stand_in, own=own, seed=seed, chunk=chunk, training=training, place=place
    )
