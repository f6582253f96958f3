"""What drawing costs the training thread, for each drawer, and beside drawing everything at each epoch.

    python -m benchmarks.drawing [--points 100000] [--steps 200] [--rounds 5] [--step-ms 10]

A step computes for so many milliseconds and, where there is a drawer, draws one point, with so many points drawn
before. Steps with and without take turns; figures are medians over the rounds. What the drawer's thread computes once
to draw the points of before, as after a resumption, stands apart. A machine that does other work at the same time
makes the figures useless.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from minetorch.checkpoint import Store
from minetorch.drawers import Curves, Drawers
from minetorch.drawers.make import DRAWERS
from minetorch.drawers.picture import load_matplotlib, render
from minetorch.errors import ConfigurationError

LOGGER = logging.getLogger("benchmark")
EPOCHS = 10, 100, 1000


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


class JobClock:
    """A drawer's CPU clock, which is looked at before and after each of its jobs and so knows what they took."""

    def __init__(self) -> None:
        self.jobs_s: list[float] = []
        self._start: float | None = None
        self._ended = threading.Condition()

    def __call__(self) -> float:
        """The seconds that the calling thread has computed."""
        now = time.thread_time()
        with self._ended:
            if self._start is None:
                self._start = now
            else:
                self.jobs_s.append(now - self._start)
                self._start = None
                self._ended.notify_all()
        return now

    def wait_for_job(self) -> None:
        """Return when the first job is done."""
        with self._ended:
            self._ended.wait_for(lambda: self.jobs_s)


def make_run(folder: Path, name: str, points: int, clock: JobClock) -> Drawers:
    """A run with one drawer, which was resumed after so many points and has drawn them."""
    drawer = DRAWERS[name](cpu_clock=clock)
    run = Drawers([drawer], store=Store.open(folder / name), code="run", current_x=lambda: 1, logger=LOGGER)
    curves = Curves()
    for step in range(points):
        curves.add("loss per step", "loss per step", step, 1 / (1 + step))
    run.restore(curves)
    run.scalar(0.5, "loss per step", x=points)
    clock.wait_for_job()
    return run


def make_step(step_ms: float) -> Callable[[], object]:
    """A step that computes for about so long, in pieces as a model's layers are: each lets go of the interpreter."""
    matrix = torch.randn(128, 128)
    piece = min(seconds(lambda: matrix @ matrix) for _ in range(200))
    count = max(1, round(step_ms / 1000 / piece))

    def step() -> None:
        for _ in range(count):
            matrix @ matrix

    return step


def measure_steps(
    run: Drawers, step: Callable[[], object], points: int, steps: int, rounds: int
) -> tuple[float, float]:
    """Seconds of a step without and with a point that is drawn."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds):
        for draws in (False, True):
            first = points + 1 + number * steps

            def many(draws: bool = draws, first: int = first) -> None:
                for index in range(steps):
                    step()
                    if draws:
                        run.scalar(0.5, "loss per step", x=first + index)
                        run.flush()

            times[draws].append(seconds(many) / steps)
    return statistics.median(times[False]), statistics.median(times[True])


def measure_calls(run: Drawers, first: int, calls: int = 2000) -> float:
    """Seconds of a call alone."""
    return statistics.median(seconds(lambda x=first + i: run.scalar(0.5, "loss per step", x=x)) for i in range(calls))


def measure_epochs(folder: Path, epochs: int) -> tuple[float, float]:
    """Seconds that the training thread takes for an epoch's drawing, ours and a picture of everything."""
    store = Store.open(folder / f"epochs-{epochs}")
    run = Drawers([DRAWERS["matplotlib"]()], store=store, code="run", current_x=lambda: epochs, logger=LOGGER)
    for epoch in range(epochs - 1):
        run.scalars({"train": 1 / (epoch + 1), "val": 2 / (epoch + 1)}, "loss", x=epoch)

    def draw() -> None:
        run.scalars({"train": 0.1, "val": 0.2}, "loss")
        run.flush()

    ours = statistics.median(seconds(draw) for _ in range(20))
    curves = {name: curve.to_numpy() for name, curve in run.curves["loss"].items()}
    everything = statistics.median(seconds(lambda: render("loss", curves)) for _ in range(5))
    run.close()
    return ours, everything


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step-ms", type=float, default=10.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    load_matplotlib()
    step = make_step(options.step_ms)
    with tempfile.TemporaryDirectory(prefix="minetorch-benchmark-") as folder:
        print(f"{'drawer':<12} {'step':>10} {'with a point':>14} {'more':>8} {'a call alone':>14} {'before, once':>14}")
        for name in DRAWERS:
            try:
                clock = JobClock()
                run = make_run(Path(folder), name, options.points, clock)
            except ConfigurationError as error:  # its library is not here
                print(f"{name:<12} {error}")
                continue
            bare, drawn = measure_steps(run, step, options.points, options.steps, options.rounds)
            call = measure_calls(run, options.points * 2)
            run.close()
            print(
                f"{name:<12} {bare * 1e3:7.2f} ms {drawn * 1e3:11.2f} ms {drawn / bare - 1:8.2%} {call * 1e6:11.1f} µs"
                f" {clock.jobs_s[0]:12.2f} s"
            )
        saving = statistics.median(seconds(run.state_dict) for _ in range(20))
        print(f"\nstate of {len(run.curves):,} points for a checkpoint: {saving * 1e3:.2f} ms")
        print(f"\n{'epochs':>8} {'drawing, ours':>16} {'everything anew':>18}")
        for epochs in EPOCHS:
            ours, everything = measure_epochs(Path(folder), epochs)
            print(f"{epochs:>8} {ours * 1e6:13.1f} µs {everything * 1e3:15.1f} ms")


if __name__ == "__main__":
    main()
