"""The options of a run's checkpoints: when to save, beside the epochs, which to keep, and which is best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minetorch.options.base import Options


@dataclass(frozen=True, kw_only=True)
class Checkpoints(Options):
    """Options of the Trainer's checkpoints: `Trainer(…, checkpoints=Checkpoints(every_steps=500, keep_last=3))`.

    The Trainer's `persist_stride` says after which epochs to save.

    Raises:
        ConfigurationError: at construction, for a value that is not allowed.
    """

    every_steps: int | None = None
    """Save every so many optimizer steps, too."""
    every_minutes: float | None = None
    """Save after so many minutes, too."""
    when_busy: Literal["wait", "coalesce"] = "wait"
    """For a save by steps or minutes that comes while another is under way. "wait": wait for the other one.
    "coalesce": make one save after it, for all that came meanwhile."""
    keep_last: int | None = None
    """Keep this many of the newest checkpoints; the best one stays, too. None: no limit of this kind."""
    keep_best: int | None = None
    """Keep this many of the best checkpoints; the newest one stays, too. None: no limit of this kind."""
    keep_every: int | None = None
    """Keep the end of every so many epochs for ever."""
    keep_every_steps: int | None = None
    """Keep what was saved after a multiple of so many optimizer steps for ever."""
    monitor: str = "val_loss"
    """The metric that says which checkpoint is best."""
    mode: Literal["min", "max"] = "min"
    """Whether the lowest or the highest value of `monitor` is best."""
    optimizer_options: Literal["checkpoint", "script"] = "checkpoint"
    """Whose learning rate, weight decay and so on a resumed run uses where they differ: the checkpoint's or the
    script's. See docs/resuming.md."""

    def __post_init__(self) -> None:
        for name in ("every_steps", "keep_last", "keep_best", "keep_every", "keep_every_steps"):
            self._check_count(name, optional=True)
        self._check_positive("every_minutes", self.every_minutes)
        self._check_choice("when_busy", ("wait", "coalesce"))
        self._check_choice("mode", ("min", "max"))
        self._check_choice("optimizer_options", ("checkpoint", "script"))
        if not isinstance(self.monitor, str) or not self.monitor.strip() or not self.monitor.isprintable():
            self._refuse("monitor", "the name of a metric, such as 'val_loss' or 'train_loss'")
