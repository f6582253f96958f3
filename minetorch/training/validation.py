"""A pass over the validation data."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import torch

from minetorch.console.progress_bar import ProgressBar
from minetorch.context import TrainerState
from minetorch.data import Batch, Comparison
from minetorch.data.randomness import generator_states, restore_generators
from minetorch.distributed.stop_vote import StopVote
from minetorch.hooks import Hooks
from minetorch.training.losses import LossFunction, zero_losses
from minetorch.training.trial import limited
from minetorch_launch.heartbeat import HeartbeatWriter, Phase


class Validated(NamedTuple):
    """The result of a validation."""

    loss: float | None
    """The mean over all ranks' samples; None if there is no sample."""
    is_cut_short: bool
    """Whether a stop has interrupted it. Then the random generators are as before, so that it can be repeated."""


class Validation:
    """Computes the validation loss of all ranks."""

    def __init__(
        self,
        trainer: TrainerState,
        loss: LossFunction,
        hooks: Hooks,
        stop_vote: StopVote,
        comparison: Comparison,
        heartbeat: HeartbeatWriter,
        bar: ProgressBar | None,
    ) -> None:
        self._trainer = trainer
        self._loss = loss
        self._hooks = hooks
        self._stop_vote = stop_vote
        self._comparison = comparison
        self._heartbeat = heartbeat
        self._bar = bar

    @torch.no_grad()
    def run(self) -> Validated:
        """Validate on this rank's share of the data. Every rank calls it."""
        trainer, strategy, loader = self._trainer, self._trainer.strategy, self._trainer.val_dataloader
        assert loader is not None
        self._heartbeat.enter(Phase.VALIDATING)
        strategy.align_buffers()
        opened = limited(self._comparison.epoch("val_dataloader", loader, trainer.current_epoch), trainer.settings)
        trainer.val_iterations, batches = opened.iterations, opened.batches
        if self._bar is not None:
            batches = self._bar.watch(batches)
        sums = zero_losses(trainer.device, strategy.validation_parts)
        samples, is_cut_short, generators = 0, False, generator_states()
        with ExitStack() as around:
            for make in trainer.around_validation:
                around.enter_context(make())
            for index, batch in enumerate(batches):
                if self._stop_vote.stop_is_wanted():
                    is_cut_short = True
                    break
                self._iterate(index, batch, sums)
                samples += batch.counted
        *world_sums, world_samples, cut = trainer.reduce(
            torch.cat([sums, sums.new_tensor([samples, is_cut_short])]), "sum"
        ).tolist()
        if cut or strategy.shares_generators:
            restore_generators(generators)
        if not cut:
            self._comparison.stream_end("val_dataloader", loader)
        return Validated(sum(world_sums) / world_samples if world_samples else None, cut > 0)

    def _iterate(self, index: int, batch: Batch, sums: torch.Tensor) -> None:
        trainer, hooks = self._trainer, self._hooks
        trainer.batch = batch
        if hooks.any_at("before_val_iteration_start"):
            hooks.call("before_val_iteration_start", index=index, data=batch.data)
        loss = trainer.strategy.validation_loss(batch, self._loss.validation, sums, epoch=trainer.current_epoch)
        self._heartbeat.beat()
        if self._bar is not None:
            self._bar.validated(trainer, index, loss)
        if hooks.any_at("after_val_iteration_end"):
            hooks.call("after_val_iteration_end", index=index, data=batch.data, loss=loss)
