"""What grows with the number of workers, on two nodes: time to the first all-reduce, memory, watching over them.

    python -m benchmarks.scale [--workers 2,8,64] [--rounds 2] [--quick] [--json FILE]

The nodes are two launchers on this machine that meet over its loopback, each with half of the workers.
"""

from __future__ import annotations

import shlex
import socket
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.harness import FAILED, OURS, Options, Row, Target, interleave, main, make_parser, progress
from benchmarks.launch import SCRIPTS
from benchmarks.processes import DiedError, Tree, available_mib, environment, gate

__all__ = ["measure"]

NODES = 2
LINEAR = "the number of workers"
LONGEST = 300.0
WATCHED_SECONDS = 3.0
MIB_OF_A_WORKER = 170
"""That torchrun's take, each an interpreter with a torch of its own."""

ROWS = {
    "wall": ("command to first all-reduce", "s"),
    "memory": ("memory of all (PSS)", "MiB"),
    "watching": ("the launchers' processor time in each second while the workers work", "s"),
}


def _minetorch(workers: int, port: int) -> list[object]:
    return [
        *(sys.executable, "-m", "minetorch_launch", "--device", "cpu"),
        *("--nodes", NODES, "--rdzv-endpoint", f"127.0.0.1:{port}", "--nproc", workers),
    ]


def _torchrun(workers: int, port: int) -> list[object]:
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", NODES, "--nproc-per-node", workers),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", uuid.uuid4().hex),
        *("--local-addr", "127.0.0.1"),
    ]


COMMANDS: dict[str, Callable[[int, int], list[object]]] = {OURS: _minetorch, "torchrun": _torchrun}


def on_all_nodes(command: list[object]) -> list[object]:
    """The same command as often as there are nodes, as one that ends with them."""
    line = shlex.join(map(str, command))
    return ["sh", "-c", f"{' & '.join([line] * NODES)} & wait"]


def launched(name: str, workers: int, watched: float, took: Callable[[str, float], None]) -> None:
    """One launch on all nodes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="minetorch-benchmark-") as folder:
        report, waiting = Path(folder, "report"), Path(folder, "gate")
        report.touch()

        def lines() -> list[list[str]]:
            return [line.split() for line in report.read_text().splitlines()]

        command = [*COMMANDS[name](workers // NODES, port), SCRIPTS / "first_reduce.py", "cpu", report, waiting]
        with gate(waiting) as go_on, Tree(on_all_nodes(command), environment(), Path(folder)) as tree:
            tree.wait_for(lambda: len(lines()) == workers, LONGEST)
            took("wall", max(float(done) for done, _ in lines()) - tree.started_at)
            took("memory", tree.memory())
            own = {int(pid) for _, pid in lines()}
            before, start = tree.cpu(without=own), time.monotonic()
            time.sleep(watched)
            took("watching", (tree.cpu(without=own) - before) / (time.monotonic() - start))
            go_on()
            tree.finish(LONGEST)


def measure_size(workers: int, rounds: int, names: Sequence[str], watched: float) -> dict[str, dict[str, list[float]]]:
    """By what was measured and launcher, a figure for each round."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def run(name: str) -> float:
        figures = dict.fromkeys(ROWS, FAILED)
        try:
            launched(name, workers, watched, figures.__setitem__)
        except DiedError as error:
            progress(f"{name} with {workers} workers failed: {error}")
        for what, figure in figures.items():
            values[what][name].append(figure)
        return figures["wall"]

    interleave({name: partial(run, name) for name in names}, rounds, warm_up=False)
    return values


def measure(options: Options) -> Iterator[Row]:
    """Rows for each number of workers, then how all has grown from the fewest to the most."""
    sizes = [2] if options.quick else sorted(map(int, options.arguments.workers.split(",")))
    found: dict[int, dict[str, dict[str, list[float]]]] = {}
    for workers in sizes:
        if workers * MIB_OF_A_WORKER > available_mib():
            yield Row("scale", f"{workers} workers", "s", note=f"needs {workers * MIB_OF_A_WORKER / 1024:.0f} GiB free")
            continue
        rounds = 1 if workers > 16 else options.rounds
        names, watched = ([OURS], 0.2) if options.quick else (list(COMMANDS), WATCHED_SECONDS)
        found[workers] = measure_size(workers, rounds, names, watched)
        for what, (told, unit) in ROWS.items():
            yield Row.of("scale", f"{workers} workers on 2 nodes: {told}", unit, found[workers][what])
    if len(found) > 1:
        fewest, most = min(found), max(found)
        for what, (told, _) in ROWS.items():
            grown = {name: [found[most][what][name][0] / found[fewest][what][name][0]] for name in found[most][what]}
            grown[LINEAR] = [most / fewest]
            told = f"from {fewest} to {most} workers, times as much: {told}"
            yield Row.of("scale", told, "", grown, target=Target(LINEAR, 1.0), floor=1.0)


if __name__ == "__main__":
    parser = make_parser(__doc__, rounds=2)
    parser.add_argument("--workers", default="2,8,64", help="numbers of workers (default %(default)s)")
    main(measure, parser)
