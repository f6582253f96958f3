"""The global order of an epoch, taken from the samplers that the user gave their DataLoader."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import torch
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler

from minetorch.data.fetching import Task
from minetorch.data.order import EpochPlan, Share, derive_seed, share_of
from minetorch.randomness import kept_generators, reseed


def global_order(sampler: Iterable[Any], seed: int, epoch: int) -> Sequence[Any]:
    """What `sampler` yields in an epoch: the same on every rank, in every run, at any world size.

    Whatever randomness the sampler draws from (a generator of its own, or those of torch, NumPy and Python)
    is seeded from (seed, epoch) while it is listed. A `DistributedSampler` is taken for its `shuffle` alone:
    the Trainer's own shares neither pad nor drop.
    """
    derived = derive_seed(seed, "order", epoch)
    if isinstance(sampler, DistributedSampler):
        length = len(sampler.dataset)  # type: ignore[arg-type]
        return _permutation(length, derived) if sampler.shuffle else range(length)
    if type(sampler) is SequentialSampler:
        return range(len(sampler.data_source))
    if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source):
        return _permutation(len(sampler.data_source), derived)
    return _list_seeded(sampler, derived, epoch)


def _permutation(length: int, seed: int) -> Sequence[int]:
    shuffled = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    # 8 bytes a sample; a list would take five times as much.
    order = array("q")
    order.frombytes(shuffled.numpy().tobytes())
    return order


def _list_seeded(sampler: Iterable[Any], seed: int, epoch: int) -> list[Any]:
    for inner in _chain(sampler):
        if callable(set_epoch := getattr(inner, "set_epoch", None)):
            set_epoch(epoch)
        if isinstance(generator := getattr(inner, "generator", None), torch.Generator):
            generator.manual_seed(seed)
    with kept_generators():
        reseed(seed)
        return list(sampler)


def _chain(sampler: Any) -> Iterator[Any]:
    """The sampler and those inside it: a batch sampler holds a sampler, and some hold more."""
    seen: set[int] = set()
    while sampler is not None and id(sampler) not in seen:
        seen.add(id(sampler))
        yield sampler
        sampler = getattr(sampler, "sampler", None)


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
