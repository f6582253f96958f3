"""The log lines at the start and at the end of a training. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.parameter import is_lazy

from minetorch.checkpoint.model_names import ModelNames
from minetorch.console.figures import four_digits, time_text

if TYPE_CHECKING:
    from torch import nn

    from minetorch.checkpoint.manifest import Manifest
    from minetorch.options.settings import Settings


@dataclass(frozen=True)
class Batches:
    """The number and the size of the training batches."""

    count: int | None
    """Batches in an epoch; None if the data has no length."""
    size: int | None
    """Samples in a batch of all workers; None if the data or a batch sampler makes the batches."""


def starting(model: nn.Module, settings: Settings, batches: Batches, devices: Sequence[str], directory: str) -> str:
    """The line at the start: model, devices, batches, precision and directory.

    Args:
        model: the user's own model.
        settings: the options of the run.
        batches: the batches of the training data.
        devices: the device of each rank.
        directory: the directory of the run.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters() if not is_lazy(parameter))
    kinds = ", ".join(kind if count == 1 else f"{count} x {kind}" for kind, count in Counter(devices).items())
    return (
        f"Training {_class_name(model)} ({parameters:,} parameters) on {kinds}: {_batches(batches)} per epoch"
        f"{'' if settings.accumulated_iter == 1 else f', {settings.accumulated_iter} batches per step'}, "
        f"{_precision(model, settings)}. Directory: {directory}"
    )


def ending(best: Manifest | None, seconds: float, directory: str) -> str:
    """The line at the end: the best metric, the duration, and the directory."""
    found = ""
    if best is not None and best.monitor in best.metrics:
        found = f"Best: {best.monitor} {four_digits(best.metrics[best.monitor])} (epoch {best.epoch}). "
    return f"{found}Time: {time_text(seconds)}. Checkpoints, graphs and log: {directory}"


def _class_name(model: nn.Module) -> str:
    """The name of the user's own class, also inside a wrapper of `torch.compile`."""
    return type(ModelNames(model).modules()[""]).__name__


def _batches(batches: Batches) -> str:
    count = "batches" if batches.count is None else f"{batches.count:,} batch{'' if batches.count == 1 else 'es'}"
    return count if batches.size is None else f"{count} of {batches.size:,}"


def _precision(model: nn.Module, settings: Settings) -> str:
    if settings.amp:
        return f"{settings.amp} mixed precision"
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in model.parameters() if tensor.is_floating_point()}
    return " and ".join(sorted(kinds)) or str(torch.get_default_dtype()).removeprefix("torch.")
