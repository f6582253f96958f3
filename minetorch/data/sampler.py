"""The global order of an epoch, taken from the samplers that the user gave their DataLoader."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler

from minetorch.data.order import EpochPlan, Share, derive_seed, share_of


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
    with seeded_globally(seed):
        return list(sampler)


def _chain(sampler: Any) -> Iterator[Any]:
    """The sampler and those inside it: a batch sampler holds a sampler, and some hold more."""
    seen: set[int] = set()
    while sampler is not None and id(sampler) not in seen:
        seen.add(id(sampler))
        yield sampler
        sampler = getattr(sampler, "sampler", None)


@contextmanager
def seeded_globally(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global CPU generators for a while, then put them back."""
    saved = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])
        torch.set_rng_state(saved[2])


class PlanSampler:
    """Feeds one rank's shares to a DataLoader as its batch sampler.

    A plan over samples gives a batch for each share. A plan over the user's own batches gives the rank's
    batch; with `split`, its part of every batch.
    """

    def __init__(self, *, batches: bool = False, split: bool = False) -> None:
        self.batches = batches
        self.split = split
        self.plan: EpochPlan[Any] = EpochPlan((), 1, 0, 1)

    def __len__(self) -> int:
        """Iterations of the plan."""
        return len(self.plan)

    def __iter__(self) -> Iterator[list[Any]]:
        for share in self.shares():
            yield list(share.units)

    def shares(self) -> Iterator[Share[Any]]:
        """The rank's share of each iteration, in samples."""
        plan = self.plan  # a hook may begin another pass over the data while this one is under way
        for iteration in range(len(plan)):
            yield self._in_samples(plan, iteration) if self.batches else plan[iteration]

    def _in_samples(self, plan: EpochPlan[Any], iteration: int) -> Share[Any]:
        first = plan.start + iteration * plan.chunk
        chunk = plan.units[first : first + plan.chunk]
        if self.split:
            return share_of(list(chunk[0]), plan.rank, plan.world_size)
        own = plan[iteration]
        total = sum(len(batch) for batch in chunk)
        return Share(list(own.units[0]), len(own.units[0]) if own.counted else 0, total)
