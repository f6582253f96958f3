"""Hands each epoch's metrics to the notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minetorch.context import TrainerState
    from minetorch.notebook.view import View


class InlineEpochs:
    """Adds a row to the table that a notebook shows. For rank 0 only."""

    def __init__(self, view: View) -> None:
        self._view = view

    def after_epoch_end(self, trainer: TrainerState, epoch: int) -> None:
        """Add the epoch's row."""
        self._view.epoch(epoch, trainer.metrics)
