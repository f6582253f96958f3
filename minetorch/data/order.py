"""Which sample is seen when, and by which rank. Pure: no process, no clock, no data.

An epoch is a sequence of *units* in one global order that depends on (seed, epoch) alone, not on the number
of ranks. A unit is a sample, or a whole batch where the user's own batch sampler makes the batches. An
iteration takes the next *chunk* of units and splits it evenly over the ranks, so that at any world size every
unit is seen once, and the ranks' shares of one iteration differ by one unit at most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

Unit = TypeVar("Unit")


def derive_seed(seed: int, *path: int | str) -> int:
    """A 63-bit seed for one purpose, such as `derive_seed(seed, "order", epoch)`.

    BLAKE2b spreads neighbouring seeds and epochs apart; adding them up would make seed 0 in epoch 1 and seed
    1 in epoch 0 the same.
    """
    text = "/".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def derive_seeds(seed: int, *path: int | str, numbers: Iterable[int]) -> list[int]:
    """`derive_seed(seed, *path, number)` for each of these numbers, in half the time."""
    begun = hashlib.blake2b("".join(f"{part}/" for part in (seed, *path)).encode(), digest_size=8)
    seeds = []
    for number in numbers:
        digest = begun.copy()
        digest.update(b"%d" % number)
        seeds.append(int.from_bytes(digest.digest(), "big") >> 1)
    return seeds


def split_evenly(length: int, parts: int, part: int) -> range:
    """The indices of part `part` when `length` things are split into `parts` runs as equal as can be.

    The first `length % parts` parts get one more than the others.
    """
    size, rest = divmod(length, parts)
    start = part * size + min(part, rest)
    return range(start, start + size + (part < rest))


def count_chunks(units: int, chunk: int, *, drop_last: bool) -> int:
    """How many iterations `units` units are, `chunk` at a time; the last may be partial unless it is dropped."""
    return units // chunk if drop_last else -(-units // chunk)


class Share(NamedTuple):
    """What one rank sees of one iteration."""

    units: Sequence[Any]
    """The rank's own units; one borrowed unit where the chunk is too small to go round (see `counted`)."""
    counted: int
    """How many of `units` count: all, or 0 where the unit is borrowed so that the rank can take part."""
    total: int
    """Units of all ranks in this iteration."""
    first: int = 0
    """The place of `units[0]` in the chunk, or in the epoch's global order where a plan says so."""


def share_of(chunk: Sequence[Unit], rank: int, world_size: int, at: int = 0) -> Share:
    """Rank `rank`'s share of a chunk that is not empty and begins at place `at`.

    Where there are fewer units than ranks, the ranks left over borrow one with a count of 0: every rank must
    take part in the gradients' sum, and none may count a sample twice.
    """
    own = split_evenly(len(chunk), world_size, rank)
    if own:
        return Share(chunk[own.start : own.stop], len(own), len(chunk), at + own.start)
    borrowed = rank % len(chunk)
    return Share(chunk[borrowed : borrowed + 1], 0, len(chunk), at + borrowed)


@dataclass(frozen=True)
class EpochPlan(Generic[Unit]):
    """One rank's shares of the rest of an epoch. Indexing costs the same anywhere in the epoch."""

    units: Sequence[Unit]
    """The epoch's units in global order."""
    chunk: int
    """Units that one iteration takes on all ranks together."""
    rank: int
    world_size: int
    start: int = 0
    """Units of the epoch that were seen before, at whatever world size."""
    drop_last: bool = False
    """Leave out a last chunk that is not full."""

    def __len__(self) -> int:
        """Iterations, the same number on every rank."""
        return count_chunks(max(0, len(self.units) - self.start), self.chunk, drop_last=self.drop_last)

    def __getitem__(self, iteration: int) -> Share:
        """The share of the iteration-th iteration from `start`."""
        if not 0 <= iteration < len(self):
            raise IndexError(iteration)
        return self._share(self.start + iteration * self.chunk)

    def __iter__(self) -> Iterator[Share]:
        """The shares of all iterations."""
        return map(self._share, range(self.start, self.start + len(self) * self.chunk, self.chunk))

    def _share(self, first: int) -> Share:
        units, chunk, own = self.units, self.chunk, self._own
        if own and first + chunk <= len(units):
            return Share(units[first + own.start : first + own.stop], len(own), chunk, first + own.start)
        return share_of(units[first : first + chunk], self.rank, self.world_size, first)

    @cached_property
    def _own(self) -> range:
        """This rank's part of a full chunk."""
        return split_evenly(self.chunk, self.world_size, self.rank)
