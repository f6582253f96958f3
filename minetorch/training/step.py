"""Makes one optimizer step from one batch, or from several with accumulated gradients."""

from __future__ import annotations

import torch

from minetorch.data import Batch
from minetorch.strategies.base import Strategy
from minetorch.training.losses import LossFunction, TrainingLoss


class TrainStep:
    """Turns the gradients of one or more iterations into one optimizer step.

    ```python
    step.begin(is_last)         # at the start of each iteration
    step.add_gradients(batch, epoch)
    if step.is_due:
        step.take()
    ```
    """

    def __init__(
        self,
        strategy: Strategy,
        loss: LossFunction,
        sums: TrainingLoss,
        *,
        accumulated: int,
        clip_grad_norm: float | None,
    ) -> None:
        """Take no step yet.

        Args:
            strategy: computes and averages gradients, and steps.
            loss: the user's loss function.
            sums: adds up the losses.
            accumulated: the number of iterations in a step.
            clip_grad_norm: upper limit of the gradients' total 2-norm.
        """
        self._strategy = strategy
        self._loss = loss
        self._sums = sums
        self._accumulated = accumulated
        self._clip_grad_norm = clip_grad_norm
        self._added = 0
        self.is_due = True
        """Whether the current iteration is the last one of its step."""

    @property
    def is_open(self) -> bool:
        """Whether gradients wait for their step. No checkpoint holds them."""
        return self._added > 0

    def reset(self) -> None:
        """Forget an accumulation that an error has interrupted."""
        self._added = 0

    def begin(self, *, is_last: bool) -> None:
        """Start an iteration.

        Args:
            is_last: whether it is the last one of the epoch. Then the step is due, even after fewer iterations.
        """
        self.is_due = is_last or self._added + 1 == self._accumulated
        if self._added == 0:
            self._strategy.forget_other_gradients()

    def add_gradients(self, batch: Batch, epoch: int) -> torch.Tensor:
        """Do the iteration's forward and backward. Returns the mean loss."""
        counted = self._strategy.add_gradients(
            batch, self._loss.training, epoch=epoch, accumulated=self._accumulated, stepping=self.is_due
        )
        self._added += 1
        self._sums.add(counted.loss, counted.samples)
        return counted.loss

    def take(self) -> None:
        """Take the optimizer's step."""
        self._strategy.step(self._clip_grad_norm, scale=self._accumulated / self._added)
        self._added = 0
