"""What drawing costs the training thread, for each drawer, and beside drawing everything at each epoch.

    python -m benchmarks.drawing [--points 100000] [--steps 100] [--rounds 5] [--step-ms 10] [--quick] [--json FILE]

A step computes for so many milliseconds and, where there is a drawer, draws one point, with so many points drawn
before. Steps with and without take turns. A machine that does other work at the same time makes the figures useless.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import torch

from benchmarks.harness import OURS, Options, Row, Target, interleave, main, make_parser, progress
from minetorch.checkpoint import Store
from minetorch.drawers import Curves, Drawers
from minetorch.drawers.make import DRAWERS
from minetorch.drawers.picture import load_matplotlib, render
from minetorch.errors import ConfigurationError

LOGGER = logging.getLogger("benchmark")
Values = dict[str, list[float]]
EPOCHS = 10, 100, 1000
BARE, EVERYTHING = "the step alone", "all epochs drawn anew"
FLAT = 1.5
"""How many times what it takes after 10 epochs a drawing may take after 1,000: a call is microseconds, and varies."""


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def make_run(folder: Path, name: str, points: int) -> Drawers:
    """A run with one drawer, which was resumed after so many points."""
    run = Drawers([DRAWERS[name]()], store=Store.open(folder / name), code="run", current_x=lambda: 1, logger=LOGGER)
    curves = Curves()
    for step in range(points):
        curves.add("loss per step", "loss per step", step, 1 / (1 + step))
    run.restore(curves)
    run.scalar(0.5, "loss per step", x=points)
    run.close()  # what follows is the cost of what is new
    return run


def make_step(step_ms: float) -> Callable[[], object]:
    """A step that computes for about so long, in pieces as a model's layers are: each lets go of the interpreter."""
    matrix = torch.randn(128, 128)
    piece = min(seconds(lambda: matrix @ matrix) for _ in range(200))
    pieces = max(1, round(step_ms / 1000 / piece))

    def step() -> None:
        for _ in range(pieces):
            matrix @ matrix

    return step


def measure_steps(run: Drawers, step: Callable[[], object], first: int, steps: int, rounds: int) -> Values:
    """Seconds of a step without and with a point that is drawn."""
    following = count(first)

    def many(*, draws: bool) -> float:
        def all_steps() -> None:
            for _ in range(steps):
                step()
                if draws:
                    run.scalar(0.5, "loss per step", x=next(following))
                    run.flush()

        taken = seconds(all_steps) / steps
        run.close()
        return taken

    return interleave({BARE: partial(many, draws=False), OURS: partial(many, draws=True)}, rounds)


def measure_calls(run: Drawers, first: int, rounds: int, calls: int = 2000) -> list[float]:
    """Seconds of a call alone, by round."""
    following = count(first)

    def many() -> None:
        for _ in range(calls):
            run.scalar(0.5, "loss per step", x=next(following))

    return [each / calls for each in interleave({OURS: partial(seconds, many)}, rounds)[OURS]]


def measure_epochs(folder: Path, epochs: int, rounds: int) -> Values:
    """Seconds that the training thread takes for an epoch's drawing, ours and a picture of everything."""
    store = Store.open(folder / f"epochs-{epochs}")
    run = Drawers([DRAWERS["matplotlib"]()], store=store, code="run", current_x=lambda: epochs, logger=LOGGER)
    for epoch in range(epochs - 1):
        run.scalars({"train": 1 / (epoch + 1), "val": 2 / (epoch + 1)}, "loss", x=epoch)

    def draw() -> None:
        for _ in range(20):
            run.scalars({"train": 0.1, "val": 0.2}, "loss")
            run.flush()

    curves = {name: curve.to_numpy() for name, curve in run.curves["loss"].items()}
    values = interleave(
        {OURS: lambda: seconds(draw) / 20, EVERYTHING: lambda: seconds(lambda: render("loss", curves))}, rounds
    )
    run.close()
    return values


def measure_drawers(folder: Path, options: Options, points: int, steps: int) -> Iterator[Row]:
    """What each drawer adds to a step, and what a call takes."""
    step = make_step(options.arguments.step_ms)
    for name in DRAWERS:
        try:
            run = make_run(folder, name, points)
        except ConfigurationError as error:  # its library is not here
            progress(f"{name} is left out: {error}")
            continue
        values = measure_steps(run, step, points + 1, steps, options.rounds)
        what = f"{name}, {points:,} points before: a step with a point that is drawn"
        yield Row.of("drawing", what, "s", values, target=Target(BARE, 1.02))
        calls = measure_calls(run, points * 2, options.rounds)
        yield Row.of("drawing", f"{name}, {points:,} points before: a call alone", "s", {OURS: calls})
        run.close()
    saving = interleave({OURS: partial(seconds, run.state_dict)}, options.rounds)
    yield Row.of("drawing", f"state of {len(run.curves):,} points for a checkpoint", "s", saving)


def measure(options: Options) -> Iterator[Row]:
    """All rows."""
    torch.set_num_threads(1)
    load_matplotlib()
    points, steps = (100, 2) if options.quick else (options.arguments.points, options.arguments.steps)
    by_epochs = {}
    with tempfile.TemporaryDirectory(prefix="minetorch-benchmark-") as folder:
        yield from measure_drawers(Path(folder), options, points, steps)
        for epochs in EPOCHS[:2] if options.quick else EPOCHS:
            by_epochs[epochs] = measure_epochs(Path(folder), epochs, options.rounds)
            yield Row.of("drawing", f"epoch {epochs:,}: the training thread's part", "s", by_epochs[epochs])
    fewest, most = min(by_epochs), max(by_epochs)
    growth = {OURS: by_epochs[most][OURS], f"epoch {fewest}": by_epochs[fewest][OURS]}
    what = f"from epoch {fewest} to epoch {most:,}: the training thread's part"
    yield Row.of("drawing", what, "s", growth, target=Target(f"epoch {fewest}", FLAT))


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--step-ms", type=float, default=10.0)
    main(measure, parser)
