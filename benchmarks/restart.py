"""From `kill -9` of a worker to the first step that all workers have made together again.

    python -m benchmarks.restart [--workers 2,4,8] [--rounds 3] [--quick] [--json FILE]

torchrun's workers cannot meet again by themselves when there are three or more of them: they read the addresses of
those before them from the agent's store. It is run with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, which cures that. Where
it hangs all the same, the round counts as failed.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.harness import FAILED, OURS, Figure, Options, Row, Target, interleave, main, make_parser, progress
from benchmarks.processes import DiedError, Tree, environment

__all__ = ["measure"]

SCRIPTS = Path(__file__).parent / "scripts"
PLAIN, TRAINER = "steps_on.py", "trainer_steps_on.py"
KINDS = {PLAIN: "kill -9 to first step of all", TRAINER: "the same under a Trainer"}
WITH_A_TRAINER = 4
"""Workers with which a Trainer's restart is measured, too: under torchrun it takes long."""

TARGETS = {2: 0.5, 4: 0.3, 8: 0.2}
TO_START, TO_RESTART, TO_END = 120.0, 60.0, 60.0
FLOOR = "floor: from the start of the new workers' script to their first step, of which gloo's meeting is all"

COMMANDS = {
    OURS: ("-m", "minetorch_launch", "--device", "cpu", "--max-restarts", 1, "--nproc"),
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--max-restarts", 1, "--nproc-per-node"),
}


def restarted(name: str, script: str, workers: int, floors: list[float]) -> float:
    """Seconds that one launcher's restart took; what the workers themselves took of them goes to ``floors``."""
    with tempfile.TemporaryDirectory(prefix="minetorch-benchmark-") as folder:
        report, stop = Path(folder, "report"), Path(folder, "stop")
        report.touch()

        def lines() -> list[list[str]]:
            return [line.split() for line in report.read_text().splitlines()]

        command = [sys.executable, *COMMANDS[name], workers, SCRIPTS / script, report, stop]
        env = environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
        try:
            with Tree(command, env, Path(folder)) as tree:
                tree.wait_for(lambda: len(lines()) == workers, TO_START)
                victim = next(int(pid) for rank, pid, _, _ in lines() if int(rank) == workers - 1)
                killed = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                tree.wait_for(lambda: len(lines()) == 2 * workers, TO_RESTART)
                again = lines()[workers:]
                stop.touch()
                tree.finish(TO_END)
        except DiedError as error:
            progress(f"{name} with {workers} workers failed: {error}")
            return FAILED
    first_step = max(float(stepped) for _, _, _, stepped in again)
    if name == OURS:
        floors.append(first_step - min(float(began) for _, _, began, _ in again))
    return first_step - killed


def measure(options: Options) -> Iterator[Row]:
    """A row for each number of workers, and one for a Trainer."""
    for workers in [2] if options.quick else map(int, options.arguments.workers.split(",")):
        for script in [PLAIN, TRAINER] if workers == WITH_A_TRAINER else [PLAIN]:
            floors: list[float] = []
            contenders = {name: partial(restarted, name, script, workers, floors) for name in COMMANDS}
            yield Row.of(
                "restart",
                f"{workers} workers: {KINDS[script]}",
                "s",
                interleave(contenders, options.rounds, warm_up=False),
                target=Target("torchrun", TARGETS[workers]) if workers in TARGETS else None,
                floor=Figure.of(floors).median if floors else None,
                note=FLOOR,
            )


if __name__ == "__main__":
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--workers", default="2,4,8", help="numbers of workers (default %(default)s)")
    main(measure, parser)
