"""Saves checkpoints by step and by the clock. Those at an epoch's end belong to the loop's own order of events."""

from __future__ import annotations

import time
from collections.abc import Callable

from minetorch.context import TrainerState


class SaveByTime:
    """Asks for a checkpoint when so many minutes have passed since the last, by rank 0's clock."""

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = minutes * 60
        self._clock = clock
        self._last = clock()

    def after_train_iteration_end(self, trainer: TrainerState) -> None:
        """Look at the clock."""
        if trainer.is_main and self._clock() - self._last >= self._seconds:
            trainer.save_soon()
            self._last = self._clock()

    def before_checkpoint_persisted(self, trainer: TrainerState) -> None:
        """Any checkpoint will do."""
        self._last = self._clock()
