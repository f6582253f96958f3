"""Keeps the best checkpoints by a metric of its own."""

from __future__ import annotations

from typing import Any

from minetorch.checkpoint.names import check_alias
from minetorch.context import TrainerState
from minetorch.plugins.monitoring import Mode, check_count, check_watch, is_better, monitored


class BestK:
    """Keeps the `k` best epochs by one more metric, under names such as `best_accuracy`, whatever else is dropped.

    ```python
    Trainer(..., keep_last=3, plugins=[BestK("accuracy", mode="max"), BestK("f1", mode="max", k=3)])
    minetorch.load("runs/default", "best_accuracy")
    ```

    The Trainer's own `monitor=`, `mode=` and `keep_best=` do the same for one metric, under the name `best`. This is
    for the second metric and those after it. With `k` above 1, `best_f1` is the best, and `best_f1_1` to `best_f1_k`
    are all k, in no order: a new one takes the name of the one that it ousts.
    """

    def __init__(self, monitor: str, *, mode: Mode = "min", k: int = 1) -> None:
        """Watch a metric.

        Args:
            monitor: a metric: "train_loss", or one that a hook or plugin before this one has set.
            mode: whether "min" or "max" of it is best.
            k: how many to keep.

        Raises:
            ConfigurationError: an argument is wrong, or the metric's name is no name for a checkpoint.
        """
        check_watch("BestK", monitor, mode)
        check_count("BestK", "k", k)
        self.monitor = monitor
        self.mode: Mode = mode
        self.name = f"BestK {monitor}"
        self._alias = check_alias(f"best_{monitor}")
        self._values: list[float | None] = [None] * k

    def after_epoch_end(self, trainer: TrainerState) -> None:
        """Name the epoch's checkpoint, if it is among the best; it is saved then, whatever the strides say."""
        value = monitored(trainer, self.monitor, "BestK")
        if value is None:
            return
        slot = worst_slot(self._values, self.mode)
        if not is_better(value, self._values[slot], self.mode):
            return
        best = all(is_better(value, other, self.mode) for other in self._values)
        self._values[slot] = value
        names = [f"{self._alias}_{slot + 1}"] if len(self._values) > 1 else []
        trainer.save_soon(*([self._alias] if best else []), *names)

    def state_dict(self) -> dict[str, Any]:
        """The values of the best."""
        return {"values": list(self._values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that `state_dict` returned; where `k` has become smaller, of the first slots."""
        kept = state_dict["values"][: len(self._values)]
        self._values = kept + [None] * (len(self._values) - len(kept))


def worst_slot(values: list[float | None], mode: Mode) -> int:
    """The first empty slot, or else that of the worst value."""
    for slot, value in enumerate(values):
        if value is None:
            return slot
    sign = 1 if mode == "min" else -1
    return max(range(len(values)), key=lambda slot: sign * (values[slot] or 0.0))
