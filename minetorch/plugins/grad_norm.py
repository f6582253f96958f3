"""Draws the norm of the gradients."""

from __future__ import annotations

from typing import Any

import torch

from minetorch.context import TrainerState
from minetorch.plugins.monitoring import check_count

GRAPH = "gradient_norm"


class GradNorm:
    """Draws the gradients' total 2-norm, before clipping, and adds its mean to the epoch's metrics as `grad_norm`.

    ```python
    Trainer(..., clip_grad_norm=1.0, plugins=[GradNorm(every=50)])
    ```

    The graph `gradient_norm` has the mean and the highest norm of every `every` steps of an epoch, by steps. The norms
    stay on the device; they are fetched at the end of an epoch and before a checkpoint, so that no step waits for it.
    A resumed run's curves are those of a run that was never stopped. Steps that `amp="fp16"` leaves out do not count.
    """

    def __init__(self, every: int = 50) -> None:
        """Draw a point every so many optimizer steps.

        Args:
            every: steps that a point stands for.

        Raises:
            ConfigurationError: it is no whole number from 1.
        """
        check_count("GradNorm", "every", every)
        self.every = every
        self._norms: list[torch.Tensor] = []
        self._points: list[tuple[int, torch.Tensor]] = []
        self._sum = torch.zeros(())
        self._count = 0
        self._handle: Any = None

    def after_init(self, trainer: TrainerState) -> None:
        """Look at the gradients before each step from now on."""
        device = trainer.device
        self._sum = self._sum.to(device, torch.float32 if device.type == "mps" else torch.float64)
        self._norms = [norm.to(device) for norm in self._norms]
        self._handle = trainer.optimizer.register_step_pre_hook(lambda *_: self._add(trainer))

    def after_epoch_end(self, trainer: TrainerState) -> None:
        """Draw what there is, and say what the epoch came to."""
        self._end_point(trainer, trainer.progress.step)
        self._draw(trainer)
        # The ranks have the same gradients, but different GPUs may sum their squares up differently.
        total, count = trainer.world.broadcast((float(self._sum), self._count))
        self._sum, self._count = torch.zeros_like(self._sum), 0
        if count:
            trainer.metrics["grad_norm"] = total / count

    def before_checkpoint_persisted(self, trainer: TrainerState) -> None:
        """Draw the points that are whole, for the checkpoint to have them."""
        self._draw(trainer)

    def before_quit(self, trainer: TrainerState) -> None:
        """Look no more."""
        self._handle.remove()

    def _add(self, trainer: TrainerState) -> None:
        self._norms.append(trainer.strategy.gradient_norm())
        if len(self._norms) == self.every:
            self._end_point(trainer, trainer.progress.step + 1)

    def _end_point(self, trainer: TrainerState, step: int) -> None:
        if not self._norms:
            return
        norms = torch.stack(self._norms).to(self._sum.dtype)
        self._norms.clear()
        if trainer.accelerator.scaler is not None:
            norms = norms[norms.isfinite()]  # a fused optimizer leaves out the other steps by itself
            if not len(norms):
                return
        self._points.append((step, torch.stack([norms.mean(), norms.max()])))
        self._sum = self._sum + norms.sum()
        self._count += len(norms)

    def _draw(self, trainer: TrainerState) -> None:
        points, self._points = self._points, []
        if not points or not trainer.is_main:
            return
        figures = torch.stack([figures for _, figures in points]).tolist()
        for (step, _), (mean, highest) in zip(points, figures, strict=True):
            trainer.drawer.scalars({"mean": mean, "highest": highest}, GRAPH, x=step)

    def state_dict(self) -> dict[str, Any]:
        """The norms of the point under way, and the sum of those of the epoch before it."""
        return {"norms": list(self._norms), "sum": self._sum, "count": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that `state_dict` returned."""
        self._norms, self._sum, self._count = (state_dict[key] for key in ("norms", "sum", "count"))
        self._norms = list(self._norms)
