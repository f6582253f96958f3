"""What exact resumption costs: a sample's seeds in a worker, a batch in the loop, DDP's buckets at start.

    python -m benchmarks.exactness [--rounds 7]

Figures are medians over the rounds, in microseconds of the main process's CPU time on one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, TensorDataset

from minetorch.backend import settle_buckets
from minetorch.data import share_out
from minetorch.data.fetching import Fetcher, Task
from minetorch.randomness import kept_generators, reseed
from minetorch.world import World

SAMPLES, BATCH = 4096, 32


class Numbers(Dataset[torch.Tensor]):
    """As cheap as can be, so that what is around it shows."""

    def __init__(self) -> None:
        self.values = torch.arange(float(SAMPLES))

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.values[index]


def a_sample(rounds: int) -> Iterator[tuple[str, float]]:
    """Seeding before a sample, and fetching a batch with and without it."""
    yield "seeds of a sample", median(rounds, lambda: reseed(123 << 40), 2000)
    fetcher, task = Fetcher(Numbers(), list, batched=True), Task(list(range(BATCH)), 5, 0, None)
    fetcher.collation_draws = False
    times = {}
    for fetcher.draws in (True, False):
        times[fetcher.draws] = median(rounds, lambda: fetcher[task], 200)
    yield "per sample, where data is fetched in the main process", (times[True] - times[False]) / BATCH


def a_batch(rounds: int) -> Iterator[tuple[str, float]]:
    """What the main process does for each batch."""

    def keep() -> None:
        with kept_generators():
            pass

    yield "keeping the main process's generators, per batch fetched there", median(rounds, keep, 500)
    for name, dataset, workers in (
        ("nothing random, no workers", TensorDataset(torch.arange(float(SAMPLES))), 0),
        ("anything, two workers", Numbers(), 2),
    ):
        source = DataLoader(dataset, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0)
        ours = share_out(source, World())
        list(source), list(ours)  # starts the workers
        actions = {"own": partial(drain, source), "shared": partial(drain, ours)}
        by = interleaved(rounds, actions)
        yield f"more than the DataLoader alone, per batch: {name}", (by["shared"] - by["own"]) / (SAMPLES / BATCH)


def buckets(rounds: int) -> Iterator[tuple[str, float]]:
    """A world of one: the walk through the parameters, without the exchange."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    layers = [nn.Linear(512, 512) for _ in range(16)]
    times = []
    for _ in range(rounds):
        ddp = DistributedDataParallel(nn.Sequential(*layers))
        begun = time.process_time()
        settle_buckets(ddp)
        times.append(time.process_time() - begun)
    yield "buckets of 4 million parameters in 32 tensors, once", statistics.median(times) * 1e6
    dist.destroy_process_group()


def drain(batches: Any) -> None:
    """Read to the end."""
    for _ in batches:
        pass


def median(rounds: int, action: Callable[[], object], times: int) -> float:
    """Microseconds of one `action`."""
    return interleaved(rounds, {"": lambda: [action() for _ in range(times)]})[""] / times


def interleaved(rounds: int, actions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Microseconds of each, by turns."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            begun = time.process_time()
            action()
            taken[name].append((time.process_time() - begun) * 1e6)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    """Measure, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for part in (a_sample, a_batch, buckets):
        for what, figure in part(rounds):
            print(f"{figure:10.1f} us  {what}", flush=True)


if __name__ == "__main__":
    main()
