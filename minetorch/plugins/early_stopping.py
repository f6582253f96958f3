"""Stops a run that gets no better."""

from __future__ import annotations

from typing import Any

from minetorch.context import TrainerState
from minetorch.errors import ConfigurationError
from minetorch.plugins.monitoring import Mode, check_count, check_watch, is_better, monitored


class EarlyStopping:
    """Stops after `patience` epochs in a row in which a metric was not better than its best so far.

    ```python
    Trainer(..., plugins=[EarlyStopping("val_loss", patience=5)])
    ```

    The decision is rank 0's, and all ranks obey. Its state is in the checkpoint: a run that was killed stops at the
    same epoch as one that was not, and one that has stopped stays so when it is started again, unless `patience` was
    raised meanwhile. Epochs without the metric, for want of a validation, do not count.
    """

    def __init__(
        self, monitor: str = "val_loss", *, mode: Mode = "min", patience: int = 10, min_delta: float = 0.0
    ) -> None:
        """Watch a metric.

        Args:
            monitor: a metric: "val_loss", "train_loss", or one that a hook or plugin before this one has set.
            mode: whether "min" or "max" of it is best.
            patience: epochs in a row without a better value, after which to stop.
            min_delta: by how much a value must be better to count as better.

        Raises:
            ConfigurationError: an argument is wrong.
        """
        check_watch("EarlyStopping", monitor, mode)
        check_count("EarlyStopping", "patience", patience)
        if not min_delta >= 0:
            raise ConfigurationError(f"EarlyStopping: min_delta must be 0 or more; {min_delta!r} was given.")
        self.monitor = monitor
        self.mode: Mode = mode
        self.patience = patience
        self.min_delta = min_delta
        self.best: float | None = None
        """The best value so far."""
        self.best_epoch = 0
        """The epoch that had it."""
        self.waited = 0
        """Epochs in a row since then."""
        self._trainer: TrainerState | None = None

    def after_init(self, trainer: TrainerState) -> None:
        """Remember whom to stop."""
        self._trainer = trainer

    def after_epoch_end(self, trainer: TrainerState) -> None:
        """Count, and stop if it is time."""
        value = monitored(trainer, self.monitor, "EarlyStopping")
        if value is None:
            return
        if is_better(value, self.best, self.mode, self.min_delta):
            self.best, self.best_epoch, self.waited = value, trainer.current_epoch, 0
        else:
            self.waited += 1
        self._stop_if_due(trainer)

    def _stop_if_due(self, trainer: TrainerState) -> None:
        if self.waited < self.patience or not trainer.is_main:
            return
        best = "never a number" if self.best is None else f"best, {self.best:.6g}, in epoch {self.best_epoch}"
        trainer.logger.info("Stopping early: %s was %s, and no better for %d epochs.", self.monitor, best, self.waited)
        trainer.graceful_stop()

    def state_dict(self) -> dict[str, Any]:
        """The best value and the count."""
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that `state_dict` returned, and stay stopped where the run had stopped."""
        self.best, self.best_epoch, self.waited = (state_dict[key] for key in ("best", "best_epoch", "waited"))
        if self._trainer is not None:
            self._stop_if_due(self._trainer)
