"""From the command to the first all-reduce done by all workers: time, processor, memory, files opened.

    python -m benchmarks.launch [--workers 1,2,4,8,16,32] [--rounds 3] [--quick] [--json FILE]

Every launcher starts the same script, as its users would start it. The floor is the same script in one process that
nobody launched: whoever launches has to import torch once.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.harness import FAILED, OURS, Figure, Options, Row, Target, interleave, main, make_parser, progress
from benchmarks.processes import DiedError, Tree, count_opened_files, environment, gate

__all__ = ["WALL", "commands", "measure", "measure_size", "title"]

SCRIPTS = Path(__file__).parent / "scripts"
WALL = {2: 0.5, 8: 0.25, 32: 0.09}
CPU = {2: 0.35, 32: 0.1}
MEMORY = 0.5
LONGEST = 240.0
ACCELERATE_AT_MOST = 8
"""Workers; accelerate launch is torchrun with one more import, and takes minutes beyond."""

ALONE = "one process, not launched"
FLOOR = "floor: the same script in one process that nobody launched, since torch has to be imported once"

Command = Callable[[int], list[object]]


def commands(device: str, *, make: bool = True) -> dict[str, Command]:
    """The start of a command line for so many workers on "cpu" or "cuda", by launcher."""
    found: dict[str, Command] = {
        OURS: lambda workers: [sys.executable, "-m", "minetorch_launch", "--nproc", workers, "--device", device],
        "torchrun": lambda workers: [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", workers),
        ],
    }
    accelerate = peers.find("accelerate", make=make).get("accelerate")
    if accelerate is not None:
        # Several workers on CPUs are to be had from it as several on GPUs are: the script picks the device.
        found["accelerate launch"] = lambda workers: [
            *(accelerate, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", workers),
            *("--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", 0),
        ]
    return found


def launched(command: list[object], workers: int, device: str, took: Callable[[str, float], None]) -> None:
    """One launch: when the last worker was done, what all processes hold then, and their processor time to the end."""
    with tempfile.TemporaryDirectory(prefix="minetorch-benchmark-") as folder:
        report, waiting = Path(folder, "report"), Path(folder, "gate")
        report.touch()

        def lines() -> list[list[str]]:
            return [line.split() for line in report.read_text().splitlines()]

        arguments = [SCRIPTS / "first_reduce.py", device, report, waiting]
        with (
            gate(waiting) as go_on,
            Tree([*command, *arguments], environment(**world_of_one(command)), Path(folder)) as tree,
        ):
            tree.wait_for(lambda: len(lines()) == workers, LONGEST)
            took("wall", max(float(done) for done, _ in lines()) - tree.started_at)
            took("memory", tree.memory() / workers)
            go_on()
            took("cpu", tree.finish(LONGEST))


def world_of_one(command: list[object]) -> dict[str, str]:
    """What a process needs to know that nobody launches."""
    if command != [sys.executable]:
        return {}
    return {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def measure_size(workers: int, device: str, contenders: dict[str, Command], options: Options) -> Iterator[Row]:
    """The rows of so many workers."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def run(name: str, command: Command) -> float:
        figures = dict.fromkeys(("wall", "memory", "cpu"), FAILED)
        try:
            launched(command(workers), 1 if name == ALONE else workers, device, figures.__setitem__)
        except DiedError as error:
            progress(f"{name} with {workers} workers failed: {error}")
        for what, figure in figures.items():
            values[what][name].append(figure)
        return figures["wall"]

    alone: dict[str, Command] = {ALONE: lambda _: [sys.executable]}
    interleave(
        {name: partial(run, name, command) for name, command in (alone | contenders).items()},
        options.rounds,
        warm_up=False,
    )
    floors = {what: Figure.of(each.pop(ALONE)).median for what, each in values.items()}

    def row(name: str, figure: str, unit: str, target: float | None, **more: Any) -> Row:
        aimed = Target("torchrun", target) if target is not None else None
        return Row.of("launch", title(workers, device, name), unit, values[figure], target=aimed, **more)

    yield row("time", "wall", "s", WALL.get(workers), floor=floors["wall"], note=FLOOR)
    yield row("processor time", "cpu", "s", CPU.get(workers), floor=floors["cpu"], note=FLOOR)
    yield row("memory of each (PSS)", "memory", "MiB", MEMORY if workers > 1 else None)


def title(workers: int, device: str, figure: str) -> str:
    """What a row is of."""
    if workers == 1:
        return f"1 worker{' on a GPU' if device == 'cuda' else ''}: {figure}"
    return f"{workers} workers{' on a GPU each' if device == 'cuda' else ''}: {figure}"


def measure_files(workers: int, contenders: dict[str, Command]) -> Iterator[Row]:
    """How many files are opened; counted once, for it hardly varies, and looking on takes long."""
    with tempfile.TemporaryDirectory(prefix="minetorch-benchmark-") as folder:
        script = [SCRIPTS / "first_reduce.py", "cpu", Path(folder, "report")]
        counts: dict[str, list[float]] = {}
        for name, command in contenders.items():
            try:
                count = count_opened_files([*command(workers), *script], environment(), LONGEST)
            except DiedError as error:
                progress(f"{name} under strace failed: {error}")
                continue
            if count is None:
                yield Row("launch", f"{workers} workers: files opened", "", note="not measured: there is no strace")
                return
            counts[name] = [float(count)]
    if OURS in counts:
        yield Row.of("launch", f"{workers} workers: files opened", "", counts)


def measure(options: Options) -> Iterator[Row]:
    """All rows."""
    contenders = commands("cpu", make=not options.quick)
    if options.quick:
        yield from measure_size(2, "cpu", contenders, options)
        return
    for workers in map(int, options.arguments.workers.split(",")):
        few = {name: each for name, each in contenders.items() if name != "accelerate launch" or workers in (2, 8)}
        yield from measure_size(workers, "cpu", few, options.at_most(1 if workers > 16 else 2 if workers > 8 else 99))
    yield from measure_files(4, contenders)


if __name__ == "__main__":
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--workers", default="1,2,4,8,16,32", help="numbers of workers (default %(default)s)")
    main(measure, parser)
