"""Stops at the first loss or gradient that is not finite, and says where it came from."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from minetorch.context import TrainerState
from minetorch.data import Batch
from minetorch.errors import NotFiniteError
from minetorch.plugins.nan_search import find_not_finite

_MOST_LOSSES = 64
"""Losses that wait to be looked at, where no step is taken meanwhile."""

_MOST_SAMPLES = 32
"""Samples that a message names."""


class _Iteration(NamedTuple):
    iteration: int
    batch: Batch
    loss: torch.Tensor | None


class NaNGuard:
    """Ends training before an optimizer step takes gradients that are NaN or infinite, and names batch and layer.

    ```python
    Trainer(..., plugins=[NaNGuard()])
    ```

    The gradients' norm is looked at before each step. Only when it is not finite, the forward and backward of the last
    batches are run again with a look at every layer, and `NotFiniteError` says on every rank which rank, which samples
    and which layer began it; the weights and the checkpoints are still good. A loss that is not finite although all
    gradients are is found by the next checkpoint, which is not saved, or the end of the epoch.

    Without such a value it costs the norm of the gradients, which gradient clipping computes anyway. On a GPU, each
    step waits for the backward, so that the next forward's kernels queue up only then.
    """

    def __init__(self) -> None:
        """Look from the first step on."""
        self._window: list[_Iteration] = []
        self._unseen: list[_Iteration] = []
        self._late: _Iteration | None = None
        self._stepped = 0
        self._handle: Any = None

    def after_init(self, trainer: TrainerState) -> None:
        """Look at the gradients before each step from now on."""
        self._handle = trainer.optimizer.register_step_pre_hook(lambda *_: self._before_step(trainer))

    def before_train_iteration_start(self, trainer: TrainerState, index: int) -> None:
        """Remember the batch until its gradients are taken."""
        assert trainer.batch is not None
        self._window.append(_Iteration(index, trainer.batch, None))

    def after_train_iteration_end(self, trainer: TrainerState, loss: torch.Tensor) -> None:
        """Remember the loss until the next look."""
        self._unseen.append(self._window[-1]._replace(loss=loss))
        if trainer.progress.step != self._stepped:
            self._stepped = trainer.progress.step
            self._window.clear()
        if len(self._unseen) >= _MOST_LOSSES:
            self._look_at_losses(self._fetch([]))

    def before_epoch_start(self, trainer: TrainerState) -> None:
        """Count steps from here."""
        self._stepped = trainer.progress.step
        self._window.clear()

    def before_checkpoint_persisted(self, trainer: TrainerState) -> None:
        """Keep a checkpoint from being saved after a loss that is not finite."""
        self._agree_on_losses(trainer)

    def after_epoch_end(self, trainer: TrainerState) -> None:
        """Look at the last losses."""
        self._agree_on_losses(trainer)

    def before_quit(self, trainer: TrainerState) -> None:
        """Look no more."""
        self._handle.remove()

    def _before_step(self, trainer: TrainerState) -> None:
        if trainer.strategy.overflows:
            return  # amp="fp16" leaves the step out, and lowers its scale
        norm, *losses = self._fetch([trainer.strategy.gradient_norm()])
        self._look_at_losses(losses)
        if not math.isfinite(norm):
            self._stop(trainer, self._window, "The gradients are not finite", "That step was not taken, and no")

    def _fetch(self, first: list[torch.Tensor]) -> list[float]:
        """The values on the device, in one go."""
        losses = [one.loss for one in self._unseen if one.loss is not None]
        values: list[float] = torch.stack([value.detach().float() for value in [*first, *losses]]).tolist()
        return values

    def _look_at_losses(self, losses: list[float]) -> None:
        for one, loss in zip(self._unseen, losses, strict=True):
            if self._late is None and not math.isfinite(loss):
                self._late = one
        self._unseen.clear()

    def _agree_on_losses(self, trainer: TrainerState) -> None:
        if self._unseen:
            self._look_at_losses(self._fetch([]))
        if any(trainer.world.gather(self._late is not None)):
            self._stop(trainer, [self._late] if self._late is not None else [], "A loss is not finite", "No")

    def _stop(self, trainer: TrainerState, suspects: list[_Iteration], what: str, no: str) -> None:
        """Search the suspects, tell all ranks, and raise on each. Every rank calls it."""
        found = (self._search(trainer, one) for one in suspects)
        mine = next((text for text in found if text is not None), None)
        findings = [text for text in trainer.world.gather(mine) if text is not None]
        where = "; ".join(findings) or "running the last batches again does not show where"
        raise NotFiniteError(
            f"{what} in epoch {trainer.current_epoch}, after step {trainer.progress.step}: {where}. {no} "
            "checkpoint was saved since."
        )

    def _search(self, trainer: TrainerState, one: _Iteration) -> str | None:
        trainer._modes.train()
        with trainer.strategy.on_this_rank():  # the others search batches of their own
            place = find_not_finite(
                trainer.unwrapped_model,
                trainer.optimizer,
                one.batch.data,
                lambda data: trainer._loss_func(trainer, data),
            )
        if place is None:
            return None
        return f"rank {trainer.rank}, iteration {one.iteration}, {_samples(one.batch)}: it comes from {place}"


def _samples(batch: Batch) -> str:
    named = ", ".join(map(str, batch.indices[:_MOST_SAMPLES]))
    what = "samples" if batch.stream is None else "the epoch's samples"
    return f"{what} {named}" + (", …" if len(batch.indices) > _MOST_SAMPLES else "")
