"""The losses of a pass over the data: computed by the user's function, checked, and summed up over all ranks."""

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
    """Sums of losses that stay on the device, where adding to them waits for nothing."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.zeros(shape, dtype=dtype, device=device)


class LossFunction:
    """The user's loss function, with a check of what it returns."""

    def __init__(self, function: Callable[[Any, Any], Any], trainer: Any, device: torch.device) -> None:
        """Call nothing yet.

        Args:
            function: takes the trainer and a batch's data.
            trainer: what it is given.
            device: where the loss must be.
        """
        self._function = function
        self._trainer = trainer
        self._device = zero_losses(device).device  # with its index

    def training(self, data: Any) -> torch.Tensor:
        """The mean loss of a batch to train on, a scalar.

        Raises:
            ConfigurationError: it is none, or no gradient can be computed from it.
        """
        return self._checked(self._function(self._trainer, data), has_gradient=True)

    def validation(self, data: Any) -> torch.Tensor:
        """The mean loss of a batch to validate on, a scalar.

        Raises:
            ConfigurationError: it is none.
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
    """The sum of an epoch's training losses. Each rank adds to its own; `sum_up` brings them together."""

    def __init__(self, world: World, progress: Progress, watch: LossWatch) -> None:
        """Nothing is summed up yet.

        Args:
            world: the ranks.
            progress: keeps the sums of all ranks between epochs, and in checkpoints.
            watch: told of each sum, on rank 0.
        """
        self._world = world
        self._progress = progress
        self._watch = watch
        self._own = zero_losses(world.device)

    def take_up(self) -> None:
        """Continue the epoch's sum; at another world size than before, rank 0 has all of it."""
        progress, rank = self._progress, self._world.rank
        own = progress.loss_sum if self._world.is_main else 0.0
        if len(progress.loss_sums) == self._world.size:
            own = progress.loss_sums[rank]
        self._own = zero_losses(self._world.device) + own

    def add(self, loss: torch.Tensor, samples: int) -> None:
        """Count a mean loss for so many samples."""
        self._own.add_(loss, alpha=samples)

    def sum_up(self) -> None:
        """Bring the ranks' sums into the counters, from where a resumed epoch goes on. Every rank calls it."""
        sums = torch.zeros(self._world.size, dtype=self._own.dtype, device=self._world.device)
        sums[self._world.rank] = self._own
        self._progress.loss_sums = self._world.reduce(sums, "sum").tolist()
        self._progress.loss_sum = sum(self._progress.loss_sums)
        if self._world.is_main:
            self._watch.look(self._progress.loss_sum, step=self._progress.step, epoch=self._progress.epoch)

    def mean(self) -> float:
        """The mean over the epoch's samples of all ranks. Every rank calls it.

        Raises:
            ConfigurationError: there was not one sample.
        """
        self.sum_up()
        samples = self._progress.samples_in_epoch
        if not samples:
            raise ConfigurationError(
                "train_dataloader gave no batch in a whole epoch. Is its dataset empty, or smaller than a batch of all "
                "workers with drop_last=True?"
            )
        return self._progress.loss_sum / samples
