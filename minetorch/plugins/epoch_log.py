"""Logs a line for each epoch."""

from __future__ import annotations

import time
from collections.abc import Callable

from minetorch.state import TrainerState


class EpochLog:
    """Says what each epoch came to: the metrics, how long it took, and training samples a second over all ranks."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
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
        """Log the epoch's figures."""
        now = self._clock()
        training = max((self._trained or now) - self._started, 1e-9)
        rate = (trainer.progress.samples - self._samples) / training
        last = f"/{trainer.max_epochs}" if trainer.max_epochs else ""
        figures = ", ".join(f"{name} {value:.6g}" for name, value in trainer.metrics.items())
        seconds = now - self._started
        trainer.logger.info("Epoch %d%s: %s (%.1f s, %.0f samples/s)", epoch, last, figures, seconds, rate)
