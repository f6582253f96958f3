"""What only a machine with a GPU can show, of launches, steps and checkpoints.

    python -m benchmarks.gpu [--rounds 3] [--megabytes 2048] [--steps 2000] [--only launch,step,checkpoint]

Without a GPU, all rows say so; launches of several workers need as many GPUs. It takes some 5 minutes.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import checkpoint, launch
from benchmarks.groups import group_of_one
from benchmarks.harness import OURS, Options, Row, Target, main, make_parser
from benchmarks.step import BARE, EPOCHS, FLOOR, measured

__all__ = ["measure"]

WORKERS = 1, 2, 8
STEP, STEP_TARGET = "a step of a tiny MLP", Target(BARE, 1.08)
NOTE = (
    "floor: the bare loop with batches that lie on the GPU. So small a step is all launching of kernels, by the host; "
    "one that keeps the GPU busy hides what a loop does beside it"
)


def measure(options: Options) -> Iterator[Row]:
    """All rows, as those of this benchmark."""
    only = options.arguments.only.split(",")
    for name, rows in ("launch", measure_launches), ("step", measure_steps), ("checkpoint", measure_checkpoints):
        if name in only:
            yield from (replace(row, benchmark="gpu") for row in rows(options))


def measure_launches(options: Options) -> Iterator[Row]:
    """From the command to the first all-reduce by NCCL."""
    for workers in WORKERS:
        if torch.cuda.device_count() >= workers:
            contenders = launch.commands("cuda", make=not options.quick)
            if workers == 1:
                contenders.pop("accelerate launch", None)  # has an option for several GPUs, and refuses it for one
            yield from launch.measure_size(workers, "cuda", contenders, options)
        else:
            target = Target("torchrun", launch.WALL[workers]) if workers in launch.WALL else None
            note = "needs a GPU" if workers == 1 else f"needs {workers} GPUs"
            yield Row("launch", launch.title(workers, "cuda", "time"), "s", target=target, note=note)


def measure_steps(options: Options) -> Iterator[Row]:
    """What a loop does beside the kernels."""
    if not torch.cuda.is_available():
        yield Row("step", STEP, "s", target=STEP_TARGET, note="needs a GPU")
        return
    names = [BARE, OURS, FLOOR, *(() if options.quick else options.arguments.peers.split(","))]
    steps = 20 if options.quick else options.arguments.steps
    values = measured(names, options.rounds, steps, 1, device="cuda")
    floor = min(values.pop(FLOOR))
    yield Row.of("step", STEP, "s", values, target=STEP_TARGET, floor=floor, note=f"{NOTE}; {EPOCHS} epochs")


def measure_checkpoints(options: Options) -> Iterator[Row]:
    """How long a save holds up the training, for a state that is on the GPU."""
    megabytes = 1 if options.quick else options.arguments.megabytes
    told = f"a state of {megabytes} MB"
    if not torch.cuda.is_available():
        for what in checkpoint.STALL, checkpoint.BESIDE:
            yield Row("checkpoint", f"{told}: {what}", "s", target=checkpoint.targets(what)[-1], note="needs a GPU")
        return
    warnings.filterwarnings("ignore", module="torch.distributed")
    with group_of_one(), tempfile.TemporaryDirectory(prefix="minetorch-benchmark-") as folder:
        values = checkpoint.measure_size(megabytes, Path(folder), None, options, None, "cuda")
    for what, each in values.items():
        yield from checkpoint.rows(told, what, each)


if __name__ == "__main__":
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--megabytes", type=int, default=2048, help="of the state that is saved (default %(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help="of an epoch (default %(default)s)")
    parser.add_argument("--peers", default="fabric,accelerate,lightning", help="loops beside (default %(default)s)")
    parser.add_argument("--only", default="launch,step,checkpoint", help="some of them, with commas between them")
    main(measure, parser)
