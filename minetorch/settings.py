"""The Trainer's plain options: what each means, what it may be, checked before anything is written."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from minetorch.checkpoint.names import parse_resume
from minetorch.errors import ConfigurationError, in_brief

_MOST_BITS = 63
_LONGEST_NAME = 255
"""Bytes, as Linux's file systems have it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of one run.

    Raises:
        ConfigurationError: at construction, for a value that is not allowed.
    """

    code: str = "default"
    """Name of the run: its directory below `alchemistic_directory`."""
    resume: bool | str | int = True
    """True: the newest checkpoint, if there is one. False: start afresh. Or which one: see `Trainer`."""
    optimizer_options: Literal["checkpoint", "script"] = "checkpoint"
    """Whose learning rate, weight decay and so on a resumed run uses where they differ."""
    eval_stride: int = 1
    """Validate every so many epochs."""
    persist_stride: int | None = 1
    """Save a checkpoint every so many epochs; None: only at the end and by the other `persist_` options."""
    persist_steps: int | None = None
    """Save a checkpoint every so many optimizer steps, too."""
    persist_minutes: float | None = None
    """Save a checkpoint after so many minutes, too."""
    persist_policy: Literal["wait", "coalesce"] = "wait"
    """What a save by steps or minutes does that comes while one is under way: wait, or be one with those after it."""
    keep_last: int | None = None
    """Keep this many of the newest checkpoints; None: no limit of this kind."""
    keep_best: int | None = None
    """Keep this many of the best checkpoints; None: no limit of this kind."""
    keep_every: int | None = None
    """Keep the end of every so many epochs for ever."""
    keep_every_steps: int | None = None
    """Keep what was saved after a multiple of so many optimizer steps for ever."""
    monitor: str = "val_loss"
    """The metric that says which checkpoint is best."""
    mode: Literal["min", "max"] = "min"
    """Whether the lowest or the highest value of `monitor` is best."""
    max_epochs: int | None = None
    """The last epoch; None: until stopped."""
    max_time: float | timedelta | None = None
    """Seconds (or a timedelta) after which to save and stop."""
    logging_format: str | None = None
    """Format of a log line, as in the standard library's `logging`; None: that of `RunLog`."""
    if_running: Literal["refuse", "wait", "replace"] = "refuse"
    """What to do where another process is training this run: stop with an error, wait for its end, or take it over."""
    trival: bool = False
    """Stop every pass over training and validation data after 10 iterations."""
    in_notebook: bool = False
    """Show output as a notebook can."""
    accumulated_iter: int = 1
    """Iterations whose gradients make one optimizer step."""
    amp: Literal[False, "bf16", "fp16"] = False
    """Mixed precision of the model's forward."""
    clip_grad_norm: float | None = None
    """Upper limit of the gradients' total 2-norm at each step."""
    find_unused_parameters: bool = False
    """Whether a step may leave trainable parameters without a gradient, with several workers."""
    seed: int = 0
    """What the data's order and every random generator derive from."""
    split_batches: bool = False
    """Whether `batch_size` is that of all workers together, rather than that of each."""
    elastic: Literal[False, "exact"] = False
    """Whether every bit of the training is to be the same at any number of workers."""
    virtual_shards: int = 8
    """With `elastic`: into how many parts each batch is split, and so the highest number of workers."""
    ledger: bool = False
    """Whether to keep a ledger of the samples that each step has trained on: see `minetorch.ledger`."""

    def __post_init__(self) -> None:
        self._check_code()
        parse_resume(self.resume)
        for name in ("eval_stride", "accumulated_iter", "virtual_shards"):
            self._check_count(name)
        for name in ("persist_stride", "persist_steps", "max_epochs"):
            self._check_count(name, optional=True)
        for name in ("keep_last", "keep_best", "keep_every", "keep_every_steps"):
            self._check_count(name, optional=True)
        for name in ("persist_minutes", "clip_grad_norm"):
            self._check_positive(name, getattr(self, name))
        self._check_positive("max_time", self.max_seconds)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed.bit_length() > _MOST_BITS:
            self._refuse("seed", f"a whole number of up to {_MOST_BITS} bits")
        self._check_choice("mode", ("min", "max"))
        self._check_choice("amp", (False, "bf16", "fp16"))
        self._check_choice("elastic", (False, "exact"))
        self._check_choice("optimizer_options", ("checkpoint", "script"))
        self._check_choice("persist_policy", ("wait", "coalesce"))
        self._check_choice("if_running", ("refuse", "wait", "replace"))
        for name in ("trival", "in_notebook", "split_batches", "find_unused_parameters", "ledger"):
            self._check_choice(name, (True, False))
        if not isinstance(self.monitor, str) or not self.monitor.strip() or not self.monitor.isprintable():
            self._refuse("monitor", "the name of a metric, such as 'val_loss' or 'train_loss'")

    @property
    def max_seconds(self) -> float | None:
        """`max_time` in seconds."""
        return self.max_time.total_seconds() if isinstance(self.max_time, timedelta) else self.max_time

    def _check_code(self) -> None:
        parts = self.code.split("/") if isinstance(self.code, str) else [""]
        if not all(map(_is_directory_name, parts)):
            self._refuse(
                "code", "the name of a directory below alchemistic_directory, such as 'plan-a' or 'mnist/plan-a'"
            )

    def _check_count(self, name: str, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value.bit_length() > _MOST_BITS:
            self._refuse(name, "a whole number from 1" + (", or None" if optional else ""))

    def _check_positive(self, name: str, value: Any) -> None:
        if value is None:
            return
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= sys.float_info.max:
            self._refuse(name, "a number above 0, or None")

    def _check_choice(self, name: str, choices: tuple[Any, ...]) -> None:
        value = getattr(self, name)
        if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in choices):
            self._refuse(name, " or ".join(map(repr, choices)))

    def _refuse(self, name: str, allowed: str) -> None:
        raise ConfigurationError(f"{name}={in_brief(getattr(self, name))} is not allowed: {name} must be {allowed}.")


def _is_directory_name(part: str) -> bool:
    """Whether every storage takes it."""
    is_plain = part not in ("", ".", "..") and "\\" not in part and part.isprintable()
    return is_plain and len(part.encode()) <= _LONGEST_NAME
