"""What a run was configured with, as plain values that its manifests keep, so that runs can be told apart later."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sized

    import torch
    from torch import nn

    from minetorch.options.settings import Settings

Plain = str | int | float | bool | None

_LEFT_OUT = frozenset({"code", "resume", "logging_format", "in_notebook", "if_running"})
"""What says nothing of the training; `resume` may be a URL, and hold its password."""
_LONGEST = 100


def facts_of(
    settings: Settings,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    options: Mapping[str, Any],
    train_dataloader: Any,
) -> dict[str, Plain]:
    """Options of the Trainer by their names, and what is plain of the objects that it was given, as `optimizer.lr`.

    Floats that are not finite are left out, as is whatever is no plain value.

    Args:
        settings: the Trainer's.
        model: the one that is trained.
        optimizer: its optimizer.
        options: those that are in force for the optimizer's first group.
        train_dataloader: as the script gave it.
    """
    facts = {**asdict(settings), "max_time": settings.max_seconds}
    facts |= {f"checkpoints.{name}": value for name, value in facts.pop("checkpoints").items()}
    facts |= {f"strategy.{name}": value for name, value in facts.pop("strategy").items()}
    facts["strategy"] = settings.strategy.name
    for name in _LEFT_OUT:
        del facts[name]
    facts |= dict(_facts_of_objects(model, optimizer, options, train_dataloader))
    return {name: value for name, value in facts.items() if _is_plain(value)}


def _facts_of_objects(
    model: nn.Module, optimizer: torch.optim.Optimizer, options: Mapping[str, Any], train_dataloader: Any
) -> Iterator[tuple[str, Any]]:
    yield "model", type(model).__name__
    yield "model.parameters", sum(parameter.numel() for parameter in model.parameters() if not is_lazy(parameter))
    yield "optimizer", type(optimizer).__name__
    yield "optimizer.groups", len(optimizer.param_groups)
    for name, value in options.items():
        # A tuple such as Adam's betas is kept in words.
        yield f"optimizer.{name}", ", ".join(map(str, value)) if isinstance(value, tuple) else value
    yield "batch_size", getattr(train_dataloader, "batch_size", None)
    dataset = getattr(train_dataloader, "dataset", None)
    if hasattr(dataset, "__len__"):
        yield "samples", len(cast("Sized", dataset))


def _is_plain(value: object) -> TypeGuard[Plain]:
    if isinstance(value, str):
        return len(value) <= _LONGEST
    return value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
