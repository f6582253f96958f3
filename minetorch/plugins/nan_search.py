"""Finds the first place in a model's forward or backward where a value is not finite. Runs only once it is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from minetorch.checkpoint.model_names import ModelNames


def find_not_finite(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Any, loss_of: Callable[[Any], torch.Tensor]
) -> str | None:
    """Where the first value that is not finite comes from, in words; None where all of them are.

    Runs a forward and, if that is all right, a backward. The model's gradients are those of this batch afterwards.

    Args:
        model: whose modules are named.
        optimizer: whose parameters' gradients are looked at.
        data: a batch.
        loss_of: the loss of a batch; it calls the model.
    """
    if not _all_finite(data):
        return "the data of the batch"
    names = ModelNames(model)
    bad = [name for name, parameter in names.parameters().items() if not _is_finite(parameter)]
    if bad:
        return f"the model's own {_listed(bad)}, before the step"
    search = _Search(names)
    try:
        # What torch.compile has made of a module calls no hooks.
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            loss = loss_of(data)
            if search.output is not None:
                return f"the output of {search.output}"
            if not _is_finite(loss):
                return "the loss function: what the model returned is finite"
            return _search_backward(names, optimizer, loss, search)
    finally:
        search.end()


def _search_backward(
    names: ModelNames, optimizer: torch.optim.Optimizer, loss: torch.Tensor, search: _Search
) -> str | None:
    parameters = names.parameters()
    for parameter in parameters.values():
        parameter.grad = None
    if not loss.requires_grad:
        return None
    loss.backward()
    if search.gradient is not None:
        return f"the gradient that comes back to the output of {search.gradient}"
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    named = [(name, p.grad) for name, p in parameters.items() if id(p) in optimized]
    bad = [name for name, gradient in named if gradient is not None and not _is_finite(gradient)]
    return f"the gradient of {_listed(bad)}" if bad else None


class _Search:
    """Watches each module of a model."""

    def __init__(self, names: ModelNames) -> None:
        self.output: str | None = None
        """The first module whose output is not finite."""
        self.gradient: str | None = None
        """The first, on the way back, whose output's gradient is not finite."""
        self._handles = [
            module.register_forward_hook(partial(self._look, _label(name, module)))
            for name, module in names.modules().items()
        ]

    def end(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _look(self, label: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if self.output is None and not _all_finite(output):
            self.output = label
        for tensor in pytree.tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(partial(self._look_back, label))

    def _look_back(self, label: str, gradient: torch.Tensor) -> None:
        if self.gradient is None and not _is_finite(gradient):
            self.gradient = label


def _label(name: str, module: nn.Module) -> str:
    kind = type(module).__name__
    return f"layer {name!r} ({kind})" if name else f"the whole model ({kind})"


def _all_finite(value: Any) -> bool:
    return all(_is_finite(leaf) for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _is_finite(tensor: torch.Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    if tensor.element_size() == 1:  # there is no isfinite for floats of 8 bits
        tensor = tensor.float()
    return bool(torch.isfinite(tensor).all())


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
