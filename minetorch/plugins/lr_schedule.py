"""Steps a learning-rate scheduler of torch's."""

from __future__ import annotations

from typing import Any, Literal

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from minetorch.context import TrainerState
from minetorch.errors import ConfigurationError
from minetorch.plugins.monitoring import check_count, monitored

GRAPH = "learning_rate"


class LRSchedule:
    """Steps a scheduler after each epoch or optimizer step, keeps its state in the checkpoint and draws the rates.

    ```python
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10_000)
    Trainer(..., optimizer=optimizer, plugins=[LRSchedule(scheduler, per="step")])
    ```

    `ReduceLROnPlateau` gets the metric that `monitor` names; epochs without it, for want of a validation, are left out.
    With per="step", steps that `amp="fp16"` leaves out because gradients overflow do not count.
    The graph `learning_rate` has a curve for each parameter group, by epochs or by steps.
    """

    def __init__(
        self,
        scheduler: LRScheduler,
        per: Literal["epoch", "step"] = "epoch",
        *,
        monitor: str = "val_loss",
        draw_every: int = 10,
    ) -> None:
        """Step `scheduler` from now on; the script itself must not.

        Args:
            scheduler: of the Trainer's optimizer.
            per: step it after each "epoch" or after each optimizer "step".
            monitor: the metric for a `ReduceLROnPlateau`.
            draw_every: with per="step", steps from one point of the curve to the next.

        Raises:
            ConfigurationError: an argument is wrong.
        """
        if not isinstance(scheduler, LRScheduler):
            raise ConfigurationError(
                f"LRSchedule takes a scheduler of torch.optim.lr_scheduler; {type(scheduler).__name__} was given."
            )
        if per not in ("epoch", "step"):
            raise ConfigurationError(f"LRSchedule: per must be 'epoch' or 'step'; {per!r} was given.")
        if per == "step" and isinstance(scheduler, ReduceLROnPlateau):
            raise ConfigurationError(
                "LRSchedule: ReduceLROnPlateau follows a metric, which there is once an epoch: use per='epoch'."
            )
        check_count("LRSchedule", "draw_every", draw_every)
        self.scheduler = scheduler
        self.per = per
        self.monitor = monitor
        self.draw_every = draw_every
        self._stepped = 0

    def after_init(self, trainer: TrainerState) -> None:
        """Refuse another optimizer's scheduler, which would change nothing."""
        if self.scheduler.optimizer is not trainer.optimizer:
            raise ConfigurationError("LRSchedule: the scheduler is of another optimizer than the Trainer's.")
        self._stepped = trainer.progress.step

    def after_train_iteration_end(self, trainer: TrainerState) -> None:
        """Step after an optimizer step."""
        step = trainer.progress.step
        if self.per == "epoch" or step == self._stepped:
            return
        self._stepped = step
        if step % self.draw_every == 0 or step == 1:
            self._draw(trainer, step)
        if trainer.strategy.has_stepped:
            self.scheduler.step()

    def after_epoch_end(self, trainer: TrainerState) -> None:
        """Step after an epoch."""
        if self.per == "step":
            return
        self._draw(trainer, trainer.current_epoch)
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
            return
        value = monitored(trainer, self.monitor, "LRSchedule")
        if value is not None:
            self.scheduler.step(value)

    def _draw(self, trainer: TrainerState, x: int) -> None:
        """The rates that the step or epoch was taken with."""
        if not trainer.is_main:
            return
        groups = trainer.optimizer.param_groups
        names = [str(group.get("name", f"group {index}")) for index, group in enumerate(groups)]
        rates = {name: float(group["lr"]) for name, group in zip(names, groups, strict=True)}
        trainer.drawer.scalars(rates if len(rates) > 1 else {"lr": next(iter(rates.values()))}, GRAPH, x=x)

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's own."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that `state_dict` returned."""
        self.scheduler.load_state_dict(state_dict)
