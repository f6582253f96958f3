"""An IterableDataset shared out over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset, get_worker_info

from minetorch.data.order import count_chunks, share_of


class SharedBatch(NamedTuple):
    """What comes out of a loader of a shared stream: the rank's collated share, and what is known of it."""

    data: Any
    counted: int
    total: int


class SharedStream(IterableDataset[Any]):
    """Reads the whole stream on every rank and yields this rank's share of each chunk.

    The stream must be the same on every rank. A DataLoader worker reads a stream of its own, as torch has it:
    split it there by `torch.utils.data.get_worker_info`, as for any DataLoader.
    """

    def __init__(
        self, dataset: IterableDataset[Any], chunk: int, rank: int, world_size: int, *, drop_last: bool
    ) -> None:
        self.dataset = dataset
        self.chunk = chunk
        self.rank = rank
        self.world_size = world_size
        self.drop_last = drop_last
        self.start = 0
        """Samples of the epoch that were seen before, over all DataLoader workers."""

    def prepare(self, epoch: int, start: int) -> int | None:
        """Turn to an epoch, of which `start` samples were seen before.

        Returns:
            The iterations that are left in it, or None where the dataset has no length.
        """
        self.start = start
        if callable(set_epoch := getattr(self.dataset, "set_epoch", None)):
            set_epoch(epoch)
        return self.iterations(start)

    def iterations(self, start: int = 0) -> int | None:
        """Iterations after `start` samples, or None where the dataset has no length."""
        try:
            length = len(self.dataset)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            return None
        return count_chunks(max(0, length - start), self.chunk, drop_last=self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        samples = iter(self.dataset)
        for _ in islice(samples, self._seen_by_this_worker()):
            pass
        while chunk := list(islice(samples, self.chunk)):
            if len(chunk) == self.chunk or not self.drop_last:
                yield self._share(chunk)

    def _share(self, chunk: list[Any]) -> Any:
        return share_of(chunk, self.rank, self.world_size)

    def _seen_by_this_worker(self) -> int:
        """A DataLoader takes a chunk from each of its workers in turn."""
        info = get_worker_info()
        if info is None:
            return self.start
        chunks = self.start // self.chunk
        return len(range(info.id, chunks, info.num_workers)) * self.chunk


class CollateShare:
    """The user's `collate_fn`, applied to a share's samples. A class, so that spawned workers can have it."""

    def __init__(self, collate: Callable[[Any], Any], *, batched: bool) -> None:
        self.collate = collate
        self.batched = batched

    def __call__(self, share: Any) -> SharedBatch:
        """Collate the share's samples, or take the single one where the stream yields whole batches."""
        data = self.collate(share.units if self.batched else share.units[0])
        return SharedBatch(data, share.counted, share.total)
