"""The metric that a plugin watches."""

from __future__ import annotations

import math
from typing import Literal

from minetorch.context import TrainerState
from minetorch.errors import ConfigurationError

Mode = Literal["min", "max"]


def monitored(trainer: TrainerState, monitor: str, who: str) -> float | None:
    """This epoch's value of a metric, rank 0's on every rank; None in an epoch without validation that has none.

    Every rank calls it, at `after_epoch_end`.

    Args:
        trainer: whose metrics.
        monitor: the metric's name.
        who: the plugin that asks, for the message.

    Raises:
        ConfigurationError: there is no such metric, in an epoch that should have it.
    """
    return trainer.world.on_main(lambda: _find(trainer, monitor, who))


def _find(trainer: TrainerState, monitor: str, who: str) -> float | None:
    if trainer.lacks_metric(monitor):
        advice = (
            "Give the Trainer a val_dataloader"
            if monitor == "val_loss"
            else f"List the plugin that sets trainer.metrics[{monitor!r}] before this one"
        )
        raise ConfigurationError(
            f"{who} watches {monitor!r}, which is not among this epoch's metrics: "
            f"{', '.join(map(repr, trainer.metrics))}. {advice}, or name one of these."
        )
    return float(trainer.metrics[monitor]) if monitor in trainer.metrics else None


def is_better(value: float, than: float | None, mode: Mode, min_delta: float = 0.0) -> bool:
    """Whether a value is better than another by more than `min_delta`; NaN never is, any number is better than None."""
    if math.isnan(value):
        return False
    if than is None:
        return True
    return value < than - min_delta if mode == "min" else value > than + min_delta


def check_watch(who: str, monitor: object, mode: object) -> None:
    """Refuse what names no metric and no direction.

    Raises:
        ConfigurationError: and says what is allowed.
    """
    if not isinstance(monitor, str) or not monitor:
        raise ConfigurationError(f"{who}: monitor must be the name of a metric, such as 'val_loss'; not {monitor!r}.")
    if mode not in ("min", "max"):
        raise ConfigurationError(f"{who}: mode must be 'min' or 'max'; {mode!r} was given.")


def check_count(who: str, name: str, value: object, least: int = 1) -> None:
    """Refuse what is no whole number from `least`.

    Raises:
        ConfigurationError: and says what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{who}: {name} must be a whole number from {least}; {value!r} was given.")
