"""Seeds the random generators before each sample, and spares the seeds of those that no sample draws from.

A seed costs torch's generator 1 us, NumPy's 1.3 and Python's 3: more than a sample takes that lies in memory. The first
samples show which generators a dataset draws from. Another is merely watched, and when a sample draws from it after
all, it is seeded from then on, and that sample fetched once more. So each sample has the numbers of its own seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from minetorch.randomness import Twister, reseed, twisters

OBSERVED = 16
"""Samples in a process before each of which all is seeded, to see what they draw from."""

SLOW_S = 5e-4
"""Seconds that a sample takes beside which its seeds do not count: then all are given, and none is fetched twice."""


class SampleSeeds:
    """Fetches samples, each with the random numbers of its own seed. Belongs to one process."""

    def __init__(self) -> None:
        self._unused: list[Twister] = twisters()
        self._used: list[Twister] = []
        self._to_observe = OBSERVED
        self._took_s = 0.0

    def fetch(self, fetch: Callable[[Any], Any], keys: Iterable[Any], seeds: Iterable[int]) -> list[Any]:
        """The samples of a batch, by their keys and seeds."""
        samples: list[Any] = []
        seed_torch, used = torch.default_generator.manual_seed, self._used
        for key, seed in zip(keys, seeds, strict=True):
            if not samples or self._to_observe:  # between two batches others may have drawn
                samples.append(self._with_all_seeds(fetch, key, seed))
                continue
            seed_torch(seed)
            for twister in used:
                twister.seed(seed)
            try:
                sample = fetch(key)
            except Exception:
                if not self._learn():
                    raise
                sample = self._with_all_seeds(fetch, key, seed)
            else:
                if self._learn():
                    sample = self._with_all_seeds(fetch, key, seed)
            samples.append(sample)
        return samples

    def _with_all_seeds(self, fetch: Callable[[Any], Any], key: Any, seed: int) -> Any:
        reseed(seed)
        for twister in self._unused:
            twister.mark()
        began = time.perf_counter()
        sample = fetch(key)
        took_s = time.perf_counter() - began
        self._learn()
        if self._to_observe:
            self._to_observe -= 1
            self._took_s += took_s
            if not self._to_observe and self._took_s > OBSERVED * SLOW_S:
                self._used += self._unused
                self._unused.clear()
        return sample

    def _learn(self) -> bool:
        """Whether something was drawn from a generator that nothing had been drawn from before."""
        drawn = [twister for twister in self._unused if twister.has_moved()]
        for twister in drawn:
            self._unused.remove(twister)
            self._used.append(twister)
        return bool(drawn)
