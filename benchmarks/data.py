"""A pass over the data: the Trainer's sampler and loader beside a bare DataLoader and accelerate's.

    python -m benchmarks.data [--rounds 9] [--batches 400] [--quick] [--json FILE]

Nothing is done with the batches, so this is the most that a loader can hold a training up. The Trainer seeds torch's,
Python's and NumPy's generators before each sample of a dataset that may draw from them, which is what makes
augmentation resume to the bit; nobody else does, and where a sample costs next to nothing it shows.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.harness import OURS, Options, Row, Target, interleave, main, make_parser
from minetorch.data import share_out
from minetorch.data.randomness import reseed
from minetorch.distributed.world import World

__all__ = ["measure"]

BATCH = 32
WORKERS = (0, 1, 2)
SIDE, CROP = 96, 80


class Numbers(Dataset[torch.Tensor]):
    """A dataset of the user's own, of which nobody can know that it draws nothing."""

    def __init__(self, size: int) -> None:
        self.values = torch.randn(size, 64)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.values[index]


class Pictures(Dataset[torch.Tensor]):
    """Small pictures, cropped and mirrored at random, and normalised."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.values = torch.randint(256, (64, 3, SIDE, SIDE), dtype=torch.uint8)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        top, left = random.randrange(SIDE - CROP), random.randrange(SIDE - CROP)
        picture = self.values[index % len(self.values), :, top : top + CROP, left : left + CROP]
        if random.random() < 0.5:
            picture = picture.flip(2)
        return picture.float().div_(255).sub_(0.5).mul_(4)


TENSORS = "tensors in memory"
SEEDED = (
    "floor: the bare loader and the seeds of each sample, without which augmentation would not resume to the bit; with "
    "workers it is they who seed"
)

KINDS: dict[str, Callable[[int], Dataset[Any]]] = {
    TENSORS: lambda size: TensorDataset(torch.randn(size, 64), torch.arange(size)),
    "a dataset of one's own, a sample of a microsecond": Numbers,
    "augmented pictures": Pictures,
}


def measure(options: Options) -> Iterator[Row]:
    """A row for each kind of data and number of workers."""
    torch.set_num_threads(1)
    batches = 8 if options.quick else options.arguments.batches
    accelerator = Accelerator(cpu=True)
    for kind, make in KINDS.items():
        for workers in WORKERS:
            source = DataLoader(
                make(batches * BATCH),
                batch_size=BATCH,
                shuffle=True,
                num_workers=workers,
                persistent_workers=workers > 0,
            )
            loaders = {"bare": source, OURS: share_out(source, World()), "accelerate": accelerator.prepare(source)}
            passes = {name: partial(a_pass, loader, batches) for name, loader in loaders.items()}
            values = interleave(passes, options.rounds)
            is_seeded = kind != TENSORS
            seeding = seconds(partial(reseed, 123 << 40), 2000) * BATCH
            yield Row.of(
                "data",
                f"a batch of {BATCH}: {kind}, {workers or 'no'} worker{'s' * (workers != 1)}",
                "s",
                values,
                target=Target("bare", 1.05),
                floor=min(values["bare"]) + seeding if is_seeded and not workers else None,
                note=SEEDED if is_seeded else "taken at once, and not sample by sample",
            )
            del source, loaders, passes


def a_pass(loader: Iterable[Any], batches: int) -> float:
    """Seconds a batch of reading to the end."""
    began = time.perf_counter()
    for _ in loader:
        pass
    return (time.perf_counter() - began) / batches


def seconds(action: Callable[[], object], times: int) -> float:
    """Of one `action`."""
    began = time.perf_counter()
    for _ in range(times):
        action()
    return (time.perf_counter() - began) / times


if __name__ == "__main__":
    parser = make_parser(__doc__, rounds=9)
    parser.add_argument("--batches", type=int, default=400, help="of a pass (default %(default)s)")
    main(measure, parser)
