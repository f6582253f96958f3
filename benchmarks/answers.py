"""How soon a launcher answers `--help`, and a command that cannot work.

    python -m benchmarks.answers [--rounds 7] [--quick] [--json FILE]

The floor is Python's own start.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

from benchmarks.harness import OURS, Figure, Options, Row, Target, interleave, main, make_parser
from benchmarks.processes import environment

__all__ = ["measure"]

AT_MOST = 0.15
PYTHON = "python -c pass"
FLOOR = "floor: the start of Python"
MODULES = {OURS: "minetorch_launch", "torchrun": "torch.distributed.run"}
QUESTIONS = {"--help": (["--help"], 0), "usage error": (["--no-such-option", "train.py"], 2)}


def answered(command: list[str], exit_code: int) -> float:
    """Seconds until the command has ended."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], env=environment(), capture_output=True, check=False)
    taken = time.perf_counter() - start
    if done.returncode != exit_code:
        raise RuntimeError(f"{command}: exit code {done.returncode}\n{done.stderr.decode()}")
    return taken


def measure(options: Options) -> Iterator[Row]:
    """A row for each question."""
    for question, (words, exit_code) in list(QUESTIONS.items())[: 1 if options.quick else None]:
        contenders = {name: partial(answered, ["-m", module, *words], exit_code) for name, module in MODULES.items()}
        values = interleave(
            {PYTHON: partial(answered, ["-c", "pass"], 0), **contenders}, options.rounds, warm_up=not options.quick
        )
        floor = Figure.of(values.pop(PYTHON)).median
        yield Row.of("answers", question, "s", values, target=Target("torchrun", AT_MOST), floor=floor, note=FLOOR)


if __name__ == "__main__":
    main(measure, make_parser(__doc__, rounds=7))
