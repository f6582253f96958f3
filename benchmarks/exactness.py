"""What exact resumption costs: a sample's seeds in a worker, a batch in the loop, DDP's buckets at start.

    python -m benchmarks.exactness [--rounds 7] [--quick] [--json FILE]

Figures are of the main process's CPU time on one thread. Nobody else does this, so there is nobody to compare with.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.groups import group_of_one
from benchmarks.harness import OURS, Options, Row, interleave, main, make_parser
from minetorch.data import share_out
from minetorch.data.fetching import Fetcher, Task
from minetorch.data.randomness import kept_generators, reseed
from minetorch.distributed.world import World
from minetorch.strategies.buckets import settle_buckets

SAMPLES, BATCH = 4096, 32


class Numbers(Dataset[torch.Tensor]):
    """As cheap as can be, so that what is around it shows."""

    def __init__(self) -> None:
        self.values = torch.arange(float(SAMPLES))

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.values[index]


Costs = Iterator[tuple[str, list[float]]]
"""What, and the seconds of processor time that it took in each round."""


class Drawing(Numbers):
    """The same, drawing from all generators that are seeded."""

    def __getitem__(self, index: int) -> torch.Tensor:
        random.random()
        np.random.random()
        return super().__getitem__(index)


def a_sample(rounds: int) -> Costs:
    """Seeding before a sample, and fetching a batch with and without it."""
    yield "seeds of a sample for all generators", repeated(rounds, lambda: reseed(123 << 40), 2000)
    task = Task(list(range(BATCH)), 5, 0, None)
    for name, dataset in (("nothing", Numbers()), ("all generators", Drawing())):
        fetcher = Fetcher(dataset, list, batched=True)
        fetcher.collation_draws = False
        times = {}
        for fetcher.draws in (True, False):
            times[fetcher.draws] = repeated(rounds, lambda: fetcher[task], 200)  # noqa: B023 - called at once
        yield f"per sample that draws from {name}, in the main process", more(*times.values(), BATCH)


def a_batch(rounds: int) -> Costs:
    """What the main process does for each batch."""

    def keep() -> None:
        with kept_generators():
            pass

    yield "keeping the main process's generators, per batch fetched there", repeated(rounds, keep, 500)
    for name, dataset, workers in (
        ("nothing random, no workers", TensorDataset(torch.arange(float(SAMPLES))), 0),
        ("anything, two workers", Numbers(), 2),
    ):
        source = DataLoader(dataset, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0)
        ours = share_out(source, World())
        list(source), list(ours)  # starts the workers
        by = interleave({"own": partial(cpu, drain, source), "shared": partial(cpu, drain, ours)}, rounds)
        yield (
            f"more than the DataLoader alone, per batch: {name}",
            more(by["shared"], by["own"], SAMPLES // BATCH),
        )


def buckets(rounds: int) -> Costs:
    """A world of one: the walk through the parameters, without the exchange."""
    layers = [nn.Linear(512, 512) for _ in range(16)]
    times = []
    with group_of_one():
        for _ in range(rounds):
            ddp = DistributedDataParallel(nn.Sequential(*layers))
            times.append(cpu(settle_buckets, ddp))
    yield "buckets of 4 million parameters in 32 tensors, once", times


def drain(batches: Any) -> None:
    """Read to the end."""
    for _ in batches:
        pass


def cpu(action: Callable[..., object], *arguments: Any) -> float:
    """Seconds of processor time."""
    begun = time.process_time()
    action(*arguments)
    return time.process_time() - begun


def repeated(rounds: int, action: Callable[[], object], times: int) -> list[float]:
    """Seconds of one `action`, by round."""

    def many() -> None:
        for _ in range(times):
            action()

    return [taken / times for taken in interleave({"": partial(cpu, many)}, rounds)[""]]


def more(ours: list[float], others: list[float], parts: int) -> list[float]:
    """How much more, for one of so many parts."""
    return [(a - b) / parts for a, b in zip(ours, others, strict=True)]


def measure(options: Options) -> Iterator[Row]:
    """A row for each cost."""
    torch.set_num_threads(1)
    for part in (a_sample, a_batch, buckets):
        for what, seconds in part(options.rounds):
            yield Row.of("exactness", what, "s", {OURS: seconds})


if __name__ == "__main__":
    main(measure, make_parser(__doc__, rounds=7))
