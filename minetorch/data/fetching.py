"""What a DataLoader's worker runs for one batch, so that its randomness is the same wherever and whenever it runs.

Augmentation draws from Python's `random`, from NumPy's global generator and from torch's. They are seeded before each
sample from (seed, epoch, the sample's place in the epoch's global order), and once more before the batch is collated.
So it matters neither how many workers there are, nor how far one has run before, nor which rank a sample falls to.
A dataset that fetches a whole batch at once (`__getitems__`) is seeded once a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from torch.utils.data import (
    ConcatDataset,
    Dataset,
    StackDataset,
    Subset,
    TensorDataset,
    default_collate,
    get_worker_info,
)
from torch.utils.data._utils.collate import default_convert

from minetorch.data.gathering import can_gather, gather
from minetorch.data.order import derive_seed, derive_seeds
from minetorch.data.randomness import kept_generators, reseed


class Task(NamedTuple):
    """What is to be fetched for one batch of one rank."""

    units: Sequence[Any]
    """The keys of the samples, as the user's sampler gave them."""
    seed: int
    """What the epoch's randomness derives from."""
    place: int
    """Of the first sample in the epoch's global order, or of the batch where the units of that are batches."""
    offset: int | None
    """Of the first sample in the user's own batch; None where there is no such batch."""

    def seeds(self, count: int) -> list[int]:
        """The seeds of its first `count` samples."""
        if self.offset is None:
            return derive_seeds(self.seed, numbers=range(self.place, self.place + count))
        return derive_seeds(self.seed, self.place, numbers=range(self.offset, self.offset + count))

    def seed_of_collation(self) -> int:
        """The seed of what is done to the batch as a whole."""
        return derive_seed(self.seed, "collate", self.place, self.offset or 0)


class Fetcher(Dataset[Any]):
    """The user's dataset and `collate_fn`, to which a DataLoader passes tasks for keys."""

    def __init__(self, dataset: Any, collate: Callable[[Any], Any], *, batched: bool) -> None:
        self.dataset = dataset
        self.collate = collate
        self.batched = batched
        self.collation_draws = not draws_nothing_to_collate(collate)
        self.draws = self.collation_draws or not draws_nothing(dataset)
        self.gathers = batched and collate is default_collate and can_gather(dataset)

    def __getitem__(self, task: Task) -> Any:
        """Fetch and collate."""
        if self.gathers and (batch := gather(self.dataset, task.units)) is not None:
            return batch
        if not self.draws:
            return self._collate(self._samples(task.units))
        with generators_apart():
            samples = self._drawn(task)
            if self.collation_draws:
                reseed(task.seed_of_collation())
            return self._collate(samples)

    def _samples(self, units: Sequence[Any]) -> list[Any]:
        if self._fetches_batches():
            samples: list[Any] = self.dataset.__getitems__(list(units))
            return samples
        dataset = self.dataset
        return [dataset[unit] for unit in units]

    def _drawn(self, task: Task) -> list[Any]:
        if self._fetches_batches():
            reseed(task.seeds(1)[0])
            return self._samples(task.units)
        samples = []
        for unit, seed in zip(task.units, task.seeds(len(task.units)), strict=True):
            reseed(seed)
            samples.append(self.dataset[unit])
        return samples

    def _collate(self, samples: list[Any]) -> Any:
        return self.collate(samples if self.batched else samples[0])

    def _fetches_batches(self) -> bool:
        """As torch decides it."""
        return self.batched and bool(getattr(self.dataset, "__getitems__", None))


class ShowDataset:
    """A `worker_init_fn` that calls the user's, for which `get_worker_info().dataset` is the user's own dataset."""

    def __init__(self, user_init: Callable[[int], None] | None) -> None:
        self.user_init = user_init

    def __call__(self, worker: int) -> None:
        """Called in the worker, at its start."""
        info = get_worker_info()
        assert info is not None
        # The class lets nobody set it. Torch's documentation has users find their dataset here, and change it.
        object.__setattr__(info, "dataset", info.dataset.dataset)  # type: ignore[attr-defined]
        if self.user_init is not None:
            self.user_init(worker)


def generators_apart() -> Any:
    """A context for drawing from seeds of one's own: the main process's generators are its loop's, and are kept."""
    return kept_generators() if get_worker_info() is None else nullcontext()


def as_it_is(data: Any) -> Any:
    """Collate nothing: the fetcher has done it."""
    return data


def draws_nothing(dataset: Any) -> bool:
    """Whether it is known that fetching from `dataset` takes no random number: then it need not be seeded."""
    kind = type(dataset)
    if kind is Subset:
        return draws_nothing(dataset.dataset)
    if kind is ConcatDataset:
        return all(map(draws_nothing, dataset.datasets))
    if kind is StackDataset:
        parts = dataset.datasets
        return all(map(draws_nothing, parts.values() if isinstance(parts, dict) else parts))
    return kind in (TensorDataset, list, tuple, range)


def draws_nothing_to_collate(collate: Callable[[Any], Any]) -> bool:
    """The same of a `collate_fn`."""
    return collate is default_collate or collate is default_convert
