"""The Trainer's plain options: what each means, what it may be, checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from minetorch.checkpoint.names import parse_resume
from minetorch.options.base import MAXIMUM_BITS, Options
from minetorch.options.checkpoints import Checkpoints
from minetorch.options.strategies import DDP, Exact

_LONGEST_NAME = 255
"""Bytes, as Linux's file systems have it."""


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """The options of one run.

    Raises:
        ConfigurationError: at construction, for a value that is not allowed.
    """

    code: str = "default"
    """Name of the run: its directory below `alchemistic_directory`."""
    resume: bool | str | int = True
    """True: the newest checkpoint, if there is one. False: start afresh. Or which one: see `Trainer`."""
    eval_stride: int = 1
    """Validate every so many epochs."""
    persist_stride: int | None = 1
    """Save a checkpoint every so many epochs; None: only at the end and by `checkpoints`."""
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
    seed: int = 0
    """What the data's order and every random generator derive from."""
    split_batches: bool = False
    """Whether `batch_size` is that of all workers together, rather than that of each."""
    ledger: bool = False
    """Whether to keep a ledger of the samples that each step has trained on: see `minetorch.ledger`."""
    checkpoints: Checkpoints = Checkpoints()
    """When to save beside the epochs, which checkpoints to keep, and which is best."""
    strategy: DDP | Exact = DDP()
    """How the model trains on several workers."""

    def __post_init__(self) -> None:
        self._check_code()
        parse_resume(self.resume)
        for name in ("eval_stride", "accumulated_iter"):
            self._check_count(name)
        for name in ("persist_stride", "max_epochs"):
            self._check_count(name, optional=True)
        self._check_positive("clip_grad_norm", self.clip_grad_norm)
        self._check_positive("max_time", self.max_seconds)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed.bit_length() > MAXIMUM_BITS:
            self._refuse("seed", f"a whole number of up to {MAXIMUM_BITS} bits")
        self._check_choice("amp", (False, "bf16", "fp16"))
        self._check_choice("if_running", ("refuse", "wait", "replace"))
        for name in ("trival", "in_notebook", "split_batches", "ledger"):
            self._check_choice(name, (True, False))
        checkpoints: Any = self.checkpoints
        if not isinstance(checkpoints, Checkpoints):
            self._refuse("checkpoints", "options of minetorch, such as Checkpoints(keep_last=3)")

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

    def _as_written(self, option: str) -> str:
        return option


def _is_directory_name(part: str) -> bool:
    """Whether every storage takes it."""
    is_plain = part not in ("", ".", "..") and "\\" not in part and part.isprintable()
    return is_plain and len(part.encode()) <= _LONGEST_NAME
