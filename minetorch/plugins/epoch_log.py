"""Logs a line for each epoch."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from minetorch.console.figures import four_digits, rate_text, time_text
from minetorch.log import MESSAGE_COLUMNS, on_console
from minetorch.plugins.throughput import RATE_GRAPH

if TYPE_CHECKING:
    from minetorch.context import TrainerState
    from minetorch.distributed.world import World


class EpochLog:
    """Logs the metrics of each epoch, how long it took, training samples per second, and whether it is the best.

    `log.txt` has all metrics with six digits. The console has four digits, and as many metrics as fit.
    """

    def __init__(
        self, is_best: Callable[[Mapping[str, float]], bool], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Use these functions.

        Args:
            is_best: whether an epoch with these metrics is the best so far.
            clock: seconds.
        """
        self._is_best = is_best
        self._clock = clock
        self._started = clock()
        self._trained: float | None = None
        self._samples = 0

    def before_epoch_start(self, trainer: TrainerState) -> None:
        """Start the clock."""
        self._started = self._clock()
        self._trained = None
        self._samples = trainer.progress.samples

    def before_val_iteration_start(self, trainer: TrainerState, index: int) -> None:
        """Validation's time is not training's."""
        if index == 0:
            self._trained = self._clock()

    def after_epoch_end(self, trainer: TrainerState, epoch: int) -> None:
        """Log the line of the epoch."""
        now = self._clock()
        training = max((self._trained or now) - self._started, 1e-9)
        metrics = {**trainer.metrics}
        # Throughput's rate, which leaves the saves out, stands in place of this one.
        rate = metrics.pop(RATE_GRAPH, (trainer.progress.samples - self._samples) / training)
        title = f"Epoch {epoch}/{trainer.max_epochs}" if trainer.max_epochs else f"Epoch {epoch}"
        seconds, samples = time_text(now - self._started), f"{rate_text(rate)} samples/s"
        best = " best" if self._is_best(trainer.metrics) else ""
        figures = ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())
        first = ("train_loss", "val_loss", trainer.settings.checkpoints.monitor)
        names = sorted(metrics, key=lambda name: name not in first)
        short = [f"{name} {four_digits(metrics[name])}" for name in names]
        trainer.logger.info(
            "%s",
            f"{title}: {figures} ({seconds}, {samples}){best}",
            extra=on_console(_fitted(f"{title}: ", short, (seconds, samples), best, _columns(trainer.world))),
        )


def _fitted(title: str, figures: Sequence[str], times: tuple[str, str], best: str, columns: int) -> str:
    """The line with as many figures as fit; the rate goes first, then the last figures."""
    line = ""
    for count in range(len(figures), -1, -1):
        more = [] if count == len(figures) else [f"{len(figures) - count} more"]
        for took in (", ".join(times), times[0]):
            line = f"{title}{', '.join([*figures[:count], *more])} ({took}){best}"
            if len(line) <= columns:
                return line
    return line


def _columns(world: World) -> int:
    """Columns for the message: on several nodes the launcher puts `[node:0]` in front of it."""
    node = f"{socket.gethostname().partition('.')[0]}:" if world.size > world.local_size else ""
    return MESSAGE_COLUMNS - len(node)
