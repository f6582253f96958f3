"""What checkpoints cost, beside what others take for the same state, in one run and by turns.

    python -m benchmarks.checkpoint [--megabytes 64,512,2048] [--rounds 3] [--directory DIR] [--s3 s3://bucket/folder]

For S3 the endpoint and the credentials come from the environment, and the bucket must be there; without --s3 a server
is started on this machine, for 64 MB alone. It takes up to 12 times the state's size on the disk, and 5 times in
memory. A machine that does other work at the same time makes the figures useless.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import shutil
import statistics
import tempfile
import time
import uuid
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from benchmarks import peers, s3
from benchmarks.groups import group_of_one
from benchmarks.harness import FAILED, OURS, Options, Row, Target, main, make_parser, progress
from benchmarks.processes import Answering, available_mib
from minetorch.checkpoint import Checkpointer, Store, parse_resume
from minetorch.checkpoint.catalogue import Catalogue
from minetorch.checkpoint.finder import Finder
from minetorch.checkpoint.saver import Saver
from minetorch.checkpoint.verification import read_verified
from minetorch.checkpoint.writer import write_payload

__all__ = ["BESIDE", "STALL", "measure", "measure_size", "rows", "targets"]

LOGGER = logging.Logger("benchmark")
SCRIPTS = Path(__file__).parent / "scripts"
TENSORS = 16
DISK_TURNS = 4
"""More than of the others, for single writes to a disk may take several times as long as the next."""

S3_TURNS = 2
MOST_FOR_DISK = 512
"""MB; what is beyond takes long and tells nothing new."""

MOST_FOR_OUR_S3 = 64
"""MB; the server that is started here is slow."""

IN_MEMORY = 5
"""How many times the state is there at once, at the most."""

COPY = "a warm copy"
DCP_ASYNC = "dcp.async_save"

Values = dict[str, dict[str, list[float]]]
"""Seconds by what was measured and by who took them, one for each turn."""


class Run:
    """A model's weights, saved as the Trainer does."""

    def __init__(self, store: Store, state: dict[str, torch.Tensor], keep_last: int | None) -> None:
        self.store = store
        self.state = state
        self.checkpointer = Checkpointer(store, keep_last=keep_last, logger=LOGGER)
        self.saver = Saver(self.checkpointer)
        self.step = 0

    def save(self) -> None:
        """Start a save."""
        self.step += 1
        self.saver.save(
            {"state_dict": self.state},
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
        """The first save is copied into memory that is new."""
        self.save()
        self.settle()


@contextmanager
def running(folder: Path, state: dict[str, torch.Tensor], keep_last: int | None) -> Iterator[Run]:
    """A warm run, closed in the end."""
    run = Run(Store.open(folder / "models"), state, keep_last)
    run.warm_up()
    try:
        yield run
    finally:
        run.saver.close()


def seconds(action: Callable[[], object], device: str = "cpu") -> float:
    """How long it takes, with all that it has a GPU do."""
    start = time.perf_counter()
    action()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device: str) -> None:
    """Until a GPU has done what this thread gave it, and what that has to wait for."""
    if device == "cuda":
        torch.cuda.current_stream().synchronize()


class Stalls:
    """For how long the training thread stands still for a save, ours and others'.

    Those that return before they have copied the weights are asked to finish the copy.
    """

    def __init__(self, run: Run, folder: Path, lightning: Answering | None) -> None:
        self._run, self._folder, self._lightning = run, folder, lightning
        self._device = device = next(iter(run.state.values())).device.type
        on_gpu = device == "cuda"
        self._copies = {
            name: torch.empty_like(tensor, device="cpu", pin_memory=on_gpu) for name, tensor in run.state.items()
        }
        # As fast as it can be made: memory that is kept from save to save, a thread that copies.
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=on_gpu, use_shared_memory=False, use_async_staging=True, use_non_blocking_copy=on_gpu
            )
        )

    def contenders(self) -> dict[str, Callable[[], float]]:
        """What makes one save each, and returns for how long that stalled."""
        contenders: dict[str, Callable[[], float]] = {
            COPY: partial(seconds, self._copy, self._device),
            OURS: self._save,
            "torch.save": partial(seconds, self._torch_save),
            "dcp.save": self._dcp_save,
            DCP_ASYNC: self._dcp_async,
            f"{DCP_ASYNC}, stager kept": self._dcp_staged,
        }
        if self._lightning is not None:
            contenders["Lightning's AsyncCheckpointIO"] = self._lightning.ask
        return contenders

    def close(self) -> None:
        """End what copies."""
        self._stager.close()

    def _copy(self) -> None:
        for name, tensor in self._run.state.items():
            self._copies[name].copy_(tensor, non_blocking=True)

    def _save(self) -> float:
        stalled = seconds(self._run.save, self._device)
        self._run.settle()
        return stalled

    def _torch_save(self) -> None:
        torch.save(self._run.state, self._folder / "stall.pth")

    def _dcp_save(self) -> float:
        stalled = seconds(lambda: dcp.save(self._run.state, checkpoint_id=self._folder / "dcp"))
        shutil.rmtree(self._folder / "dcp")
        return stalled

    def _dcp_async(self) -> float:
        start = time.perf_counter()
        saving: Any = dcp.async_save(self._run.state, checkpoint_id=self._folder / "dcp")
        stalled = time.perf_counter() - start
        saving.result()
        shutil.rmtree(self._folder / "dcp")
        return stalled

    def _dcp_staged(self) -> float:
        start = time.perf_counter()
        saving: Any = dcp.async_save(self._run.state, checkpoint_id=self._folder / "dcp", async_stager=self._stager)
        stalled = time.perf_counter() - start
        stalled += seconds(saving.staging_completion.result)
        saving.upload_completion.result()
        shutil.rmtree(self._folder / "dcp")
        return stalled


def by_turns(contenders: dict[str, Callable[[], float]], into: dict[str, list[float]]) -> None:
    """Ask each once, when what the one before has left behind is gone: to give memory back holds all threads up."""
    for name, contender in contenders.items():
        gc.collect()
        try:
            into[name].append(contender())
        except Exception as error:
            if name == OURS:
                raise
            progress(f"{name} failed: {type(error).__name__}: {error}")
            into[name].append(FAILED)


def measure_steps(run: Run, into: dict[str, list[float]], count: int = 30) -> None:
    """How long a step takes without a save, before and after it so many times, and while one is under way."""
    device = next(iter(run.state.values())).device.type

    def steps() -> Iterator[float]:
        matrix = torch.ones(768, 768, device=device)
        while True:
            start = time.perf_counter()
            for _ in range(8):
                matrix @ matrix
            wait_for(device)
            yield time.perf_counter() - start

    each = steps()
    alone = [next(each) for _ in range(count)]
    run.save()
    beside = []
    while run.saver.is_busy:
        beside.append(next(each))
    run.settle()
    alone += [next(each) for _ in range(count)]
    into["no save"].append(statistics.mean(alone))
    into[OURS].append(statistics.mean(beside))


def measure_disk(run: Run, folder: Path, written: dict[str, list[float]], read: dict[str, list[float]]) -> None:
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
        run.saver.flush()

    def verify() -> None:
        Finder(run.store, (), LOGGER).find(Catalogue.read(run.store), parse_resume(True))

    savers = [("torch.save and fsync", save_and_sync), (OURS, save)]
    for turn in range(DISK_TURNS):
        for name, action in savers if turn % 2 else reversed(savers):
            os.sync()
            written[name].append(seconds(action))
            run.settle()
    loaders = [("torch.load", lambda: torch.load(files[-1], weights_only=True)), (OURS, verify)]
    for turn in range(DISK_TURNS):
        for name, action in loaders if turn % 2 else reversed(loaders):
            read[name].append(seconds(action))
    for manifest in run.checkpointer.list()[:-1]:
        for file in manifest.key.files:
            run.store.delete(file)
    for path in files:
        path.unlink()


def measure_s3(
    state: dict[str, torch.Tensor], url: str, up: dict[str, list[float]], down: dict[str, list[float]]
) -> None:
    """To S3 and back, beside boto3 with as many parts at a time, and s3fs."""
    import boto3
    import s3fs
    from boto3.s3.transfer import TransferConfig

    from minetorch.checkpoint import s3 as ours

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    config = TransferConfig(multipart_chunksize=ours.PART, max_concurrency=ours.AT_ONCE)
    content = io.BytesIO()
    torch.save(state, content)
    data = content.getvalue()
    store = Store.open(url)
    fs = s3fs.S3FileSystem()
    written = write_payload(store, "minetorch.pth", state)
    uploads = [
        ("boto3", lambda: client.upload_fileobj(io.BytesIO(data), bucket, f"{prefix}/boto3", Config=config)),
        ("s3fs", lambda: fs.pipe_file(f"{bucket}/{prefix}/s3fs", data)),
        (OURS, lambda: write_payload(store, "minetorch.pth", state)),
    ]
    downloads = [
        ("boto3", lambda: client.download_fileobj(bucket, f"{prefix}/boto3", io.BytesIO(), Config=config)),
        ("s3fs", lambda: fs.cat_file(f"{bucket}/{prefix}/s3fs")),
        (OURS, lambda: read_verified(store, written)),
    ]
    for ways, into in ((uploads, up), (downloads, down)):
        for turn in range(S3_TURNS):
            for name, action in ways if turn % 2 else reversed(ways):
                into[name].append(seconds(action))
    for name in ("minetorch.pth", "boto3", "s3fs"):
        store.delete(name)


STALL = "a save stalls the training"
BESIDE = "a step beside a save"
TO_DISK, FROM_DISK = "to a local disk, durably", "from a local disk, verified"
TO_S3, FROM_S3 = "to S3, serialised and digested", "from S3, digested"
NOTES = {STALL: "floor: a copy into memory that is warm"}


def targets(what: str) -> list[Target]:
    """What is aimed at: the first stands in the row of all peers, each other in a row of its own."""
    return {
        STALL: [Target(COPY, 1.3), Target(DCP_ASYNC, 0.5)],
        BESIDE: [Target("no save", 1.1)],
        TO_DISK: [Target("torch.save and fsync", 1.2)],
        FROM_DISK: [Target("torch.load", 1.2)],
        TO_S3: [Target("boto3", 1 / 0.85)],
        FROM_S3: [Target("boto3", 1 / 0.85)],
    }[what]


def measure_size(
    megabytes: int, folder: Path, url: str | None, options: Options, python: Path | None, device: str = "cpu"
) -> Values:
    """All figures of a state of so many MB."""
    values: Values = defaultdict(lambda: defaultdict(list))
    count = megabytes * 2**20 // 4 // TENSORS
    state = {f"layer{number}": torch.randn(count, device=device) for number in range(TENSORS)}
    with ExitStack() as stack:
        run = stack.enter_context(running(folder / "run", state, keep_last=1))
        lightning = None
        if python is not None:
            lightning = stack.enter_context(Answering([python, SCRIPTS / "stall_lightning.py", megabytes, folder]))
        stalls = Stalls(run, folder, lightning)
        stack.callback(stalls.close)
        if not options.quick:
            by_turns(stalls.contenders(), defaultdict(list))
        for _ in range(options.rounds):
            by_turns(stalls.contenders(), values[STALL])
            measure_steps(run, values[BESIDE], count=1 if options.quick else 30)
        (folder / "stall.pth").unlink()
    if megabytes <= MOST_FOR_DISK and not options.quick:
        with running(folder / "keeping", state, keep_last=None) as run:
            for _ in range(options.rounds):
                measure_disk(run, folder, values[TO_DISK], values[FROM_DISK])
    if url is not None:
        for _ in range(options.rounds):
            measure_s3(state, url, values[TO_S3], values[FROM_S3])
    return values


def measure(options: Options) -> Iterator[Row]:
    """Rows for each size."""
    torch.set_num_threads(options.arguments.threads)
    warnings.filterwarnings("ignore", module="torch.distributed")
    logging.disable()
    chosen = options.arguments.directory
    if chosen is not None:
        Path(chosen).mkdir(parents=True, exist_ok=True)
    python = peers.find("lightning", make=not options.quick).get("lightning")
    with ExitStack() as stack:
        stack.enter_context(group_of_one())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="minetorch-benchmark-", dir=chosen))
        ours_s3 = None
        if options.arguments.s3 is None and not options.quick:
            ours_s3, _ = stack.enter_context(s3.bucket())
        for megabytes in [1] if options.quick else map(int, options.arguments.megabytes.split(",")):
            if megabytes * IN_MEMORY > available_mib():
                yield Row(
                    "checkpoint", f"{megabytes} MB", "s", note=f"needs {megabytes * IN_MEMORY / 1024:.0f} GiB free"
                )
                continue
            root = options.arguments.s3 or (ours_s3 if megabytes <= MOST_FOR_OUR_S3 else None)
            url = f"{root.rstrip('/')}/{uuid.uuid4().hex}" if root else None
            fewer = options if megabytes <= MOST_FOR_DISK else options.at_most(3)
            with tempfile.TemporaryDirectory(dir=folder) as own:
                values = measure_size(megabytes, Path(own), url, fewer, python)
            for what, each in values.items():
                yield from rows(f"{megabytes} MB", what, each)


def rows(size: str, what: str, values: dict[str, list[float]]) -> Iterator[Row]:
    """One for all peers, with the first target; the others are of lines of their own."""
    floor = statistics.median(values[COPY]) if COPY in values else None
    first, *others = targets(what)
    more = {"floor": floor, "note": NOTES.get(what, "")}
    aimed_at = {target.peer for target in others}
    told = {name: each for name, each in values.items() if name not in aimed_at}
    yield Row.of("checkpoint", f"{size}: {what}", "s", told, target=first, **more)
    for target in others:
        pair = {name: values[name] for name in (OURS, target.peer)}
        yield Row.of("checkpoint", f"{size}: {what}", "s", pair, target=target, **more)


if __name__ == "__main__":
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--megabytes", default="64,512,2048", help="sizes of the state (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the training's computation")
    parser.add_argument("--directory", help="on the disk to measure; a temporary one by default")
    parser.add_argument("--s3", metavar="URL", help="a folder on S3, such as s3://bucket/folder")
    main(measure, parser)
