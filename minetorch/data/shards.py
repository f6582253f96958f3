"""Virtual shards: every chunk is split into so many parts at any world size, and each rank has a run of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from minetorch.data.checks import has_own_batches, samples_per_batch
from minetorch.data.loader import Batch, RankLoader
from minetorch.data.order import EpochPlan, Share, share_of, split_evenly
from minetorch.data.sampler import PlanSampler
from minetorch.data.stream import Portion, SharedStream, StreamPosition
from minetorch.distributed.world import World
from minetorch.errors import ConfigurationError


class ShardSampler(PlanSampler):
    """Says what to fetch for each of the rank's shards that has a sample.

    Its plan is that of a world of as many ranks as there are shards.
    """

    def __init__(self, plan: EpochPlan[Any], own: range, *, batches: bool) -> None:
        super().__init__(plan, batches=batches, split=True)
        self._of_shards = [PlanSampler(replace(plan, rank=shard), batches=batches, split=True) for shard in own]

    def by_iteration(self) -> Iterator[list[Share]]:
        """The shares of all of the rank's shards, also of those without a sample."""
        return ([share for share, _ in placed] for placed in self._placed_by_iteration())

    def _placed(self) -> Iterator[tuple[Share, int | None]]:
        return (one for placed in self._placed_by_iteration() for one in placed if one[0].counted)

    def _placed_by_iteration(self) -> Iterator[list[tuple[Share, int | None]]]:
        return map(list, zip(*(sampler._placed() for sampler in self._of_shards), strict=True))


class ShardStream(SharedStream):
    """Reads the whole stream on every rank and gives the rank's shards of each chunk."""

    def __init__(self, *arguments: Any, own: range, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._own = own

    def _collated(self, chunk: list[Any], first: int) -> tuple[list[Any], list[int]]:
        shares = [share_of(chunk, shard, self.world_size, first) for shard in self._own]
        counted = [share for share in shares if share.counted]
        return [self._collate(share) for share in counted], [share.counted for share in counted]


class ShardLoader(RankLoader):
    """One rank's virtual shards of a DataLoader.

    The Trainer gets one `Batch` an iteration, with the batches of all the rank's shards. Iterating yields these one by
    one.
    """

    def __init__(
        self,
        source: DataLoader[Any],
        world: World,
        *,
        own: range,
        seed: int,
        chunk: int,
        training: bool,
        place: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(source, world, seed=seed, chunk=chunk, split=True, training=training, place=place)
        self._own = own
        self._stream_type = partial(ShardStream, own=own)

    def __len__(self) -> int:
        """Batches that iterating yields, or up to an iteration's more, where the last chunk is smaller."""
        return super().__len__() * len(self._own)

    def __iter__(self) -> Iterator[Any]:
        return (data for batch in self.epoch(self.current_epoch).batches for data in batch.data)

    def _from_plan(self, shares: PlanSampler) -> Iterator[Batch]:
        plan, sampler = shares.plan, ShardSampler(shares.plan, self._own, batches=shares.batches)
        fetched = self._fetched(sampler.tasks(self._samples_seed()), self.source.num_workers)
        at = plan.start
        for own in sampler.by_iteration():
            counted = [share.counted for share in own if share.counted]
            units = min(plan.chunk, len(plan.units) - at)
            data = [next(fetched) for _ in counted]
            indices = [unit for share in own if share.counted for unit in share.units]
            shards = self._numbered(counted)
            yield Batch(data, sum(counted), own[0].total, units, indices, position=at, shards=shards)
            at += units
        next(fetched, None)  # lets workers that live on serve the next pass

    def _streamed(self, portion: Portion, position: StreamPosition) -> Batch:
        total, end = portion.total, sum(position.seen)
        chunk, shards = range(end - total, end), self._numbered(portion.counted)
        places = [place for shard, _ in shards for place in share_of(chunk, shard, self._world.size).units]
        return Batch(portion.data, sum(portion.counted), total, total, places, position, chunk.start, shards)

    def _numbered(self, counted: list[int]) -> list[tuple[int, int]]:
        # Those without a sample are the last ones.
        return list(zip(self._own, counted, strict=False))


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
    if batch_size is None and not has_own_batches(source):
        raise ConfigurationError(
            'strategy="exact" splits each batch into virtual shards, but the DataLoader has batch_size=None. Give it a '
            "batch_size."
        )
    if batch_size is not None and batch_size < shards:
        raise ConfigurationError(
            f'strategy="exact" splits each batch into virtual_shards={shards}, but batch_size={batch_size}. Use a '
            f"batch_size of {shards} or more, or Exact(virtual_shards={batch_size}) or fewer shards."
        )
    chunk, own = batch_size or 1, split_evenly(shards, world.size, world.rank)
    # To the order of samples, the shards are the ranks.
    stand_in = World(rank=own.start, size=shards, device=world.device)
    return ShardLoader(source, stand_in, own=own, seed=seed, chunk=chunk, training=training, place=place)
