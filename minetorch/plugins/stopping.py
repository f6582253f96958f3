"""Stops a run when its time is up."""

from __future__ import annotations

import time
from collections.abc import Callable

from minetorch.context import TrainerState


class StopByTime:
    """Asks to save and stop when so many seconds have passed since the Trainer was made, by rank 0's clock."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds
        self._asked = False

    def after_train_iteration_end(self, trainer: TrainerState) -> None:
        """Look at the clock."""
        if trainer.is_main and not self._asked and self._clock() >= self._end:
            self._asked = True
            trainer.logger.info("max_time is over: saving and stopping.")
            trainer.save_and_stop()

    def after_val_iteration_end(self, trainer: TrainerState) -> None:
        """Look at it in validation, too, which is then cut short."""
        self.after_train_iteration_end(trainer)
