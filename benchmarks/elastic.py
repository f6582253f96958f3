"""What strategy="exact" costs a step, beside the default mode, in one world and by turns.

    python -m benchmarks.elastic [--worlds 1,2,4] [--virtual-shards 8] [--threads 1] [--rounds 5] [--quick]

Each round trains both ways on the same data and takes the median of its steps' durations. Every worker computes with
as many threads in both, so that the ratio is that of the mode; where there are more workers than cores, they wait for
each other in both.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.harness import OURS, Options, Row, interleave, main, make_parser
from minetorch import Exact, Trainer

ITERATIONS = 40
DEFAULT = "the default mode"
WARM_UP = 8
"""Iterations of a round that are not counted: DDP and the memory allocator find their ways."""


def mlp() -> nn.Module:
    """0.3 million parameters."""
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def cnn() -> nn.Module:
    """Twice a convolution with BatchNorm, on images of 28 x 28."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {"MLP": (mlp, 256), "CNN": (cnn, 128)}
"""Each with the samples of a batch, of all workers together."""


class StepTimes:
    """Seconds of each iteration."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def after_train_iteration_end(self, trainer: Trainer, index: int) -> None:
        """Look at the clock."""
        now = time.perf_counter()
        if index > WARM_UP:
            self.seconds.append(now - self._last)
        self._last = now


def step_seconds(name: str, folder: Path, threads: int, **options: Any) -> float:
    """The median step of a short training."""
    build, batch_size = MODELS[name]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, times = build(), StepTimes()
    samples = ITERATIONS * batch_size
    data = TensorDataset(torch.randn(samples, 784), torch.randint(10, (samples,)))
    trainer = Trainer(
        folder,
        model,
        torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        DataLoader(data, batch_size=batch_size),
        lambda trainer, data: nn.functional.cross_entropy(trainer.model(data[0]), data[1]),
        plugins=[times],
        resume=False,
        max_epochs=1,
        persist_stride=None,
        drawer=None,
        split_batches=True,
        **options,
    )
    trainer.train()
    return statistics.median(times.seconds)


def work(arguments: argparse.Namespace) -> None:
    """In a worker: by model, the seconds of a step both ways, by round; rank 0 writes them down."""
    logging.disable()
    exact = {"strategy": Exact(virtual_shards=arguments.virtual_shards)}
    found = {}
    for name in ["MLP"] if arguments.quick else MODELS:
        train = partial(step_seconds, name, threads=arguments.threads)
        ways = {
            DEFAULT: partial(train, arguments.folder / "default"),
            OURS: partial(train, arguments.folder / "exact", **exact),
        }
        found[name] = interleave(ways, arguments.rounds, warm_up=False)
    if os.environ["RANK"] == "0":
        (arguments.folder / "found.json").write_text(json.dumps(found))


def measure(options: Options) -> Iterator[Row]:
    """Start the worlds one after the other."""
    arguments = options.arguments
    for size in ["1"] if options.quick else arguments.worlds.split(","):
        with tempfile.TemporaryDirectory(prefix="minetorch-benchmark-") as folder:
            launcher = [sys.executable, "-m", "minetorch_launch", "--nproc", size, "--device", "cpu"]
            words = ["--rounds", options.rounds, "--threads", arguments.threads, "--folder", folder]
            words += ["--virtual-shards", arguments.virtual_shards, *(["--quick"] if options.quick else [])]
            command = [*launcher, "-m", "benchmarks.elastic", *words]
            subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr)
            found = json.loads(Path(folder, "found.json").read_text())
        for name, values in found.items():
            workers = f"{size} {'worker' if size == '1' else 'workers'}"
            what = f'{name}, {workers}, {arguments.virtual_shards} shards: a step with strategy="exact"'
            yield Row.of("elastic", what, "s", values)


def make_elastic_parser() -> argparse.ArgumentParser:
    """The command line, of the workers, too."""
    parser = make_parser(__doc__)
    parser.add_argument("--worlds", default="1,2,4", help="numbers of workers")
    parser.add_argument("--virtual-shards", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="of each worker in the default mode")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    given = make_elastic_parser().parse_args()
    if given.folder is not None:
        work(given)
    else:
        main(measure, make_elastic_parser())
