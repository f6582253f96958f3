"""Computes the losses of a pass over the data, checks them, and sums them over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from minetorch.distributed.world import World
from minetorch.errors import ConfigurationError
from minetorch.options import checks
from minetorch.progress import Progress
from minetorch.training.loss_watch import LossWatch


def zero_losses(device: torch.device, *shape: int) -> torch.Tensor:
    """Make zeros to sum losses in. They stay on the device, so that adding to them does not wait for it."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.zeros(shape, dtype=dtype, device=device)


class LossFunction:
    """The user's loss function, with a check of what it returns."""

    def __init__(self, function: Callable[[Any, Any], Any], trainer: Any, device: torch.device) -> None:
        """Call nothing yet.

        Args:
            function: takes the trainer and a batch's data.
            trainer: the function's first argument.
            device: the device that the loss must be on.
        """
        self._function = function
        self._trainer = trainer
        self._device = zero_losses(device).device  # with its index

    def training(self, data: Any) -> torch.Tensor:
        """The mean loss of a training batch, a scalar.

        Raises:
            ConfigurationError: the function returned something else, or a loss without a gradient.
        """
        return self._checked(self._function(self._trainer, data), has_gradient=True)

    def validation(self, data: Any) -> torch.Tensor:
        """The mean loss of a validation batch, a scalar.

        Raises:
            ConfigurationError: the function returned something else.
        """
        return self._checked(self._function(self._trainer, data), has_gradient=False)

    def _checked(self, loss: Any, *, has_gradient: bool) -> torch.Tensor:
        if (
            not isinstance(loss, torch.Tensor)
            or loss.numel() != 1
            or (has_gradient and not loss.requires_grad)
            or loss.device != self._device
            or loss.is_complex()
        ):
            checks.refuse_loss(loss, self._device)
        return loss if loss.ndim == 0 else loss.reshape(())


class TrainingLoss:
    """The sum of an epoch's training losses. Each rank adds to its own sum, and `sum_up` exchanges the sums."""

    def __init__(self, world: World, progress: Progress, watch: LossWatch) -> None:
        """Start from zero.

        Args:
            world: the ranks.
            progress: keeps the sums of all ranks between epochs, and in checkpoints.
            watch: gets each sum on rank 0.
        """
        self._world = world
        self._progress = progress
        self._watch = watch
        self._own = zero_losses(world.device)

    def take_up(self) -> None:
        """Continue the epoch's sum from `progress`. If the world size has changed, rank 0 continues the whole sum."""
        progress, rank = self._progress, self._world.rank
        own = progress.loss_sum if self._world.is_main else 0.0
        if len(progress.loss_sums) == self._world.size:
            own = progress.loss_sums[rank]
        self._own = zero_losses(self._world.device) + own

    def add(self, loss: torch.Tensor, samples: int) -> None:
        """Add a mean loss over this number of samples."""
        self._own.add_(loss, alpha=samples)

    def sum_up(self) -> None:
        """Write the sums of all ranks to `progress`, so that a resumed epoch can continue them. Every rank calls it."""
        sums = torch.zeros(self._world.size, dtype=self._own.dtype, device=self._world.device)
        sums[self._world.rank] = self._own
        self._progress.loss_sums = self._world.reduce(sums, "sum").tolist()
        self._progress.loss_sum = sum(self._progress.loss_sums)
        if self._world.is_main:
            self._watch.look(self._progress.loss_sum, step=self._progress.step, epoch=self._progress.epoch)

    def mean(self) -> float:
        """The mean over the epoch's samples of all ranks. Every rank calls it.

        Raises:
            ConfigurationError: the epoch had no sample.
        """
        self.sum_up()
        samples = self._progress.samples_in_epoch
        if not samples:
            raise ConfigurationError(
                "train_dataloader gave no batch in a whole epoch. Is its dataset empty, or smaller than a batch of all "
                "workers with drop_last=True?"
            )
        return self._progress.loss_sum / samples
