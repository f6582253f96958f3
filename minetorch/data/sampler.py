"""The global order of an epoch, taken from the samplers that the user gave their DataLoader."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, repeat
from typing import Any

import torch
from torch.utils.data import RandomSampler, SequentialSampler

from minetorch.data.checks import is_plain_distributed, with_inner_samplers
from minetorch.data.fetching import Task
from minetorch.data.order import EpochPlan, Share, derive_seed, share_of
from minetorch.data.randomness import kept_generators, reseed
from minetorch.errors import ConfigurationError

ENDLESS = 1_000_000
"""Keys that a sampler without a length may always give for an epoch, however small the dataset is."""


def global_order(sampler: Any, seed: int, epoch: int, samples: int = 0) -> Sequence[Any]:
    """What `sampler` yields in an epoch: the same on every rank, in every run, at any world size.

    Whatever randomness the sampler draws from (a generator of its own, or those of torch, NumPy and Python)
    is seeded from (seed, epoch) while it is listed. A `DistributedSampler` is taken for its `shuffle` alone:
    the Trainer's own shares neither pad nor drop.

    Args:
        sampler: the user's sampler or batch sampler.
        seed: the run's.
        epoch: its number, from 1.
        samples: in the dataset, as far as that is known.

    Raises:
        ConfigurationError: the sampler seems to be endless. It gives more than twice what its `len` says; or it has no
            length, and gives more than ten keys for each sample of the dataset, and more than `ENDLESS`.
    """
    derived = derive_seed(seed, "order", epoch)
    if is_plain_distributed(sampler):
        length = len(sampler.dataset)
        return _permutation(length, derived) if sampler.shuffle else range(length)
    if type(sampler) is SequentialSampler:
        return range(len(sampler.data_source))
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source):
        return _permutation(len(sampler.data_source), derived)
    with _seeded(sampler, derived, epoch):
        return _listed(sampler, samples)


def _permutation(length: int, seed: int) -> Sequence[int]:
    shuffled = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    # 8 bytes a sample; a list would take five times as much.
    order = array("q")
    order.frombytes(shuffled.numpy().tobytes())
    return order


@contextmanager
def _seeded(sampler: Any, seed: int, epoch: int) -> Iterator[None]:
    for inner in with_inner_samplers(sampler):
        if callable(set_epoch := getattr(inner, "set_epoch", None)):
            set_epoch(epoch)
        if isinstance(generator := getattr(inner, "generator", None), torch.Generator):
            generator.manual_seed(seed)
    with kept_generators():
        reseed(seed)
        yield


def _listed(sampler: Any, samples: int) -> list[Any]:
    """All units of the sampler. To list an endless one would take all memory, so there is a limit."""
    length = length_of(sampler)
    limit = max(ENDLESS, 10 * samples) if length is None else 2 * length
    iterator, units, count = iter(sampler), [], 0
    while part := list(islice(iterator, 1000)):
        units += part
        count += len(part) if length is not None else sum(map(_keys_in, part))
        if count > limit:
            said = "it has no len()" if length is None else f"its len() is {length:,}"
            raise ConfigurationError(
                f"{type(sampler).__name__} seems to be endless: it gave more than {limit:,} keys for one epoch, and "
                f"{said}. Let its __iter__ end with the epoch, and its __len__ say after how many keys; the Trainer "
                "iterates over it once for each epoch."
            )
    return units


def _keys_in(unit: Any) -> int:
    return len(unit) if isinstance(unit, list | tuple) else 1


def length_of(sized: Any) -> int | None:
    """`len`, or None where there is no length."""
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None


class PlanSampler:
    """One rank's shares of a plan.

    A plan over samples gives a batch for each share. A plan over the user's own batches gives the rank's
    batch; with `split`, its part of every batch.
    """

    def __init__(self, plan: EpochPlan[Any], *, batches: bool = False, split: bool = False) -> None:
        self.plan = plan
        self.batches = batches
        self.split = split

    def tasks(self, seed: int, taken: deque[Share] | None = None) -> Iterator[Task]:
        """What is to be fetched for each iteration, with randomness that derives from `seed`.

        Args:
            seed: of the epoch's randomness.
            taken: gets the share, in samples, of each task that was taken.
        """
        for share, offset in self._placed():
            if taken is not None:
                taken.append(share)
            yield Task(share.units, seed, share.first, offset)

    def _placed(self) -> Iterator[tuple[Share, int | None]]:
        """Each share, and where its samples begin in the user's own batch."""
        return map(self._in_samples, range(len(self.plan))) if self.batches else zip(self.plan, repeat(None))

    def _in_samples(self, iteration: int) -> tuple[Share, int]:
        plan = self.plan
        first = plan.start + iteration * plan.chunk
        chunk = plan.units[first : first + plan.chunk]
        if self.split:
            part = share_of(list(chunk[0]), plan.rank, plan.world_size)
            return part._replace(first=first), part.first
        own = plan[iteration]
        total = sum(len(batch) for batch in chunk)
        return Share(list(own.units[0]), len(own.units[0]) if own.counted else 0, total, own.first), 0
