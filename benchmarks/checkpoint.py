"""What checkpoints cost, beside what others take for the same state, in one run and by turns.

    python -m benchmarks.checkpoint [--megabytes 512] [--rounds 5] [--directory DIR] [--s3 s3://bucket/folder]

For S3 the endpoint and the credentials come from the environment; the bucket must be there. It takes up to 12 times the
state's size on the disk. Figures are medians over the rounds. A machine that does other work at the same time makes
them useless; the more so as saves stand back for it, and what they are compared with does not.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
import uuid
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import checkpoint as dcp

from minetorch.checkpoint import Checkpointer, Store, parse_resume
from minetorch.checkpoint.catalogue import Catalogue
from minetorch.checkpoint.finder import Finder
from minetorch.checkpoint.saver import Saver
from minetorch.checkpoint.verification import read_verified
from minetorch.checkpoint.writer import write_payload

LOGGER = logging.Logger("benchmark")
TENSORS = 16
DISK_TURNS = 4
"""More than of the others, for single writes to a disk may take several times as long as the next."""

S3_TURNS = 2

HIDDEN_BEHIND = 6
"""How many times a copy's duration the computation takes behind which staging may hide."""


class Times:
    """Seconds by what took them."""

    def __init__(self) -> None:
        self._all: dict[str, list[float]] = defaultdict(list)

    def of(self, name: str, action: Callable[[], object]) -> float:
        """Run something, and keep how long it took."""
        start = time.perf_counter()
        action()
        return self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> float:
        """Keep a duration."""
        self._all[name].append(seconds)
        return seconds

    def median(self, name: str) -> float:
        """Of all rounds."""
        return statistics.median(self._all[name])

    def __contains__(self, name: str) -> bool:
        return name in self._all


class Run:
    """A model's weights, saved as the Trainer does."""

    def __init__(self, store: Store, state: dict[str, torch.Tensor], keep_last: int | None) -> None:
        self.store = store
        self.state = state
        self.checkpointer = Checkpointer(store, keep_last=keep_last, logger=LOGGER)
        self.saver = Saver(self.checkpointer, logger=LOGGER)
        self.step = 0

    def save(self) -> None:
        """Start a save, of which all may be copied until the next step."""
        self.step += 1
        self.saver.save(
            {"state_dict": self.state},
            steady=self.state.values(),
            names=(),
            step=self.step,
            epoch=1,
            epoch_complete=False,
            position=self.step,
            world_size=1,
            metrics={},
        )

    def settle(self) -> None:
        """Wait until it is durable, and the one before deleted."""
        self.saver.flush()
        self.saver.take_news()
        if self.saver._tidying is not None:
            self.saver._tidying.result()

    def warm_up(self) -> None:
        """The first save is copied at once, into memory that is new."""
        for _ in range(2):
            self.save()
            self.saver.before_step()
            self.settle()


def compute(seconds: float) -> None:
    """What training does meanwhile, on the threads that training has."""
    matrix = torch.ones(384, 384)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        matrix @ matrix


def measure_stalls(run: Run, folder: Path, times: Times) -> None:
    """For how long the training thread stands still for a save."""
    copies = {name: torch.empty_like(tensor) for name, tensor in run.state.items()}

    def copy() -> None:
        for name, tensor in run.state.items():
            copies[name].copy_(tensor)

    copy()
    seconds = times.of("copy", copy)
    copies.clear()
    times.of("stall: torch.save", lambda: torch.save(run.state, folder / "stall.pth"))
    times.of("stall: dcp.save", lambda: dcp.save(run.state, checkpoint_id=folder / "dcp"))
    shutil.rmtree(folder / "dcp")
    start = time.perf_counter()
    future: Any = dcp.async_save(run.state, checkpoint_id=folder / "dcp-async")
    times.add("stall: dcp.async_save", time.perf_counter() - start)
    future.result()
    shutil.rmtree(folder / "dcp-async")
    (folder / "stall.pth").unlink()

    def save_and_step() -> None:
        run.save()
        run.saver.before_step()

    times.of("stall: minetorch, nothing to hide behind", save_and_step)
    run.settle()
    stalled = times.of("", run.save)
    compute(seconds * HIDDEN_BEHIND)
    stalled += times.of("", run.saver.before_step)
    times.add("stall: minetorch, behind a computation", stalled)
    run.settle()


def measure_steps(run: Run, times: Times) -> None:
    """How long a step takes without a save, and while one is under way."""

    def steps() -> Iterator[float]:
        matrix = torch.ones(768, 768)
        while True:
            start = time.perf_counter()
            for _ in range(8):
                matrix @ matrix
            run.saver.before_step()
            yield time.perf_counter() - start

    each = steps()
    alone = [next(each) for _ in range(30)]
    run.save()
    beside = []
    while run.saver.is_busy:
        beside.append(next(each))
    run.settle()
    alone += [next(each) for _ in range(30)]
    times.add("step: alone", statistics.mean(alone))
    times.add("step: beside a save", statistics.mean(beside))


def measure_disk(run: Run, folder: Path, times: Times) -> None:
    """Until it is durable on this disk, and back.

    Nothing is deleted until all is measured. Where a disk is provided as it is filled, as virtual machines' are, blocks
    that another file has just let go are written several times as fast as new ones, and whoever writes after a deletion
    would win by that. In training, checkpoints are minutes apart: all blocks are new.
    """
    files: list[Path] = []

    def save_and_sync() -> None:
        files.append(folder / f"sync-{len(files)}.pth")
        with open(files[-1], "wb") as file:
            torch.save(run.state, file)
            file.flush()
            os.fsync(file.fileno())

    def save() -> None:
        run.save()
        run.saver.before_step()
        run.saver.flush()

    def verify() -> None:
        Finder(run.store, (), LOGGER).find(Catalogue.read(run.store), parse_resume(True))

    savers = [("disk: torch.save and fsync", save_and_sync), ("disk: minetorch, to durable", save)]
    for turn in range(DISK_TURNS):
        for name, action in savers if turn % 2 else reversed(savers):
            os.sync()
            times.of(name, action)
            run.settle()
    loaders = [
        ("disk: torch.load", lambda: torch.load(files[-1], weights_only=True)),
        ("disk: minetorch, open and verify", verify),
    ]
    for turn in range(DISK_TURNS):
        for name, action in loaders if turn % 2 else reversed(loaders):
            times.of(name, action)
    for manifest in run.checkpointer.list()[:-1]:
        run.store.delete(manifest.key.manifest)
        run.store.delete(manifest.payload)
    for file in files:
        file.unlink()


def measure_s3(run: Run, url: str, times: Times) -> None:
    """To S3 and back, beside boto3 with as many parts at a time, and s3fs."""
    import boto3
    import s3fs
    from boto3.s3.transfer import TransferConfig

    from minetorch.checkpoint import s3

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    config = TransferConfig(multipart_chunksize=s3.PART, max_concurrency=s3.AT_ONCE)
    content = io.BytesIO()
    torch.save(run.state, content)
    data = content.getvalue()
    store = Store.open(url)
    fs = s3fs.S3FileSystem()
    written = write_payload(store, "minetorch.pth", run.state)
    manifest: Any = argparse.Namespace(payload="minetorch.pth", size=written.size, digest=written.digest)
    uploads = [
        ("boto3", lambda: client.upload_fileobj(io.BytesIO(data), bucket, f"{prefix}/boto3", Config=config)),
        ("s3fs", lambda: fs.pipe_file(f"{bucket}/{prefix}/s3fs", data)),
        ("minetorch, serialised and digested", lambda: write_payload(store, "minetorch.pth", run.state)),
    ]
    downloads = [
        ("boto3", lambda: client.download_fileobj(bucket, f"{prefix}/boto3", io.BytesIO(), Config=config)),
        ("s3fs", lambda: fs.cat_file(f"{bucket}/{prefix}/s3fs")),
        ("minetorch, digested", lambda: read_verified(store, manifest)),
    ]
    for direction, ways in (("up", uploads), ("down", downloads)):
        for turn in range(S3_TURNS):
            for name, action in ways if turn % 2 else reversed(ways):
                times.of(f"s3 {direction}: {name}", action)
    for name in ("minetorch.pth", "boto3", "s3fs"):
        store.delete(name)


TARGETS = [
    ("stall: minetorch, behind a computation", "copy", 0.5),
    ("stall: minetorch, nothing to hide behind", "copy", 1.3),
    ("step: beside a save", "step: alone", 1.1),
    ("disk: minetorch, to durable", "disk: torch.save and fsync", 1.2),
    ("disk: minetorch, open and verify", "disk: torch.load", 1.2),
    ("s3 up: minetorch, serialised and digested", "s3 up: boto3", 1 / 0.85),
    ("s3 down: minetorch, digested", "s3 down: boto3", 1 / 0.85),
]
"""What is to take at most so many times as long as what."""


def report(times: Times, megabytes: int) -> None:
    """A table of medians, and of targets."""
    for name in times._all:
        if name:
            seconds = times.median(name)
            rate = "" if name.startswith("step") else f"{megabytes / seconds:10.0f} MB/s"
            print(f"{name:48s} {seconds * 1000:10.1f} ms {rate}")
    print()
    for name, other, most in TARGETS:
        if name in times:
            ratio = times.median(name) / times.median(other)
            verdict = "met" if ratio <= most else "MISSED"
            print(f"{name:48s} {ratio:6.2f} x {other:28s} at most {most:.2f}: {verdict}")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="threads of the training's computation")
    parser.add_argument("--directory", help="on the disk to measure; a temporary one by default")
    parser.add_argument("--s3", metavar="URL", help="a folder on S3, such as s3://bucket/folder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", module="torch.distributed")
    logging.disable()
    if arguments.directory is not None:
        Path(arguments.directory).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="minetorch-benchmark-", dir=arguments.directory))
    url = f"{arguments.s3.rstrip('/')}/{uuid.uuid4().hex}" if arguments.s3 else None
    times = Times()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        count = arguments.megabytes * 2**20 // 4 // TENSORS
        state = {f"layer{number}": torch.randn(count) for number in range(TENSORS)}
        run = Run(Store.open(folder / "run/models"), state, keep_last=1)
        keeping = Run(Store.open(folder / "keeping/models"), state, keep_last=None)
        run.warm_up()
        keeping.warm_up()
        for number in range(1, arguments.rounds + 1):
            sys.stderr.write(f"round {number} of {arguments.rounds}\n")
            measure_stalls(run, folder, times)
            measure_steps(run, times)
            measure_disk(keeping, folder, times)
            if url is not None:
                measure_s3(run, url, times)
        run.saver.close()
        keeping.saver.close()
        report(times, arguments.megabytes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(Exception):
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
