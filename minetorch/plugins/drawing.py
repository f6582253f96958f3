"""Draws each epoch's losses."""

from __future__ import annotations

from minetorch.context import TrainerState


class DrawLosses:
    """Puts the training and validation loss of the whole world on the graph `loss`."""

    def after_epoch_end(self, trainer: TrainerState, train_loss: float, val_loss: float | None) -> None:
        """Add a point to each curve; an epoch without validation adds none to `val`."""
        losses = {"train": train_loss} if val_loss is None else {"train": train_loss, "val": val_loss}
        trainer.drawer.scalars(losses, "loss")
