"""Names of a model's parameters, buffers and modules without the wrappers that torch puts around modules.

`torch.compile(module)` holds the module as `_orig_mod`, DistributedDataParallel and DataParallel hold it as `module`.
A checkpoint has neither in its names, so that its weights fit the plain model and a run can continue with another
wrapping.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

_COMPILED = "_orig_mod"


class ModelNames:
    """Translates between a model's own names and the plain ones. It knows the wrappers at the time it is made."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        modules = dict(model.named_modules(remove_duplicate=False))
        self._wrapped = {name for name in modules if name and _is_wrapped(name, modules)}
        # A wrapper and the module in it have the same plain name. The module comes later, and it is the one to keep.
        self._own = {self.plain(name): name for name in modules}

    def plain(self, name: str) -> str:
        """The plain name of a parameter, buffer or module that the model calls `name`."""
        if not self._wrapped:
            return name
        path, kept = "", []
        for part in name.split("."):
            path = f"{path}.{part}" if path else part
            if path not in self._wrapped:
                kept.append(part)
        return ".".join(kept)

    def own(self, name: str) -> str:
        """The model's own name of the parameter or buffer that a checkpoint calls `name`."""
        # Old checkpoints have the wrappers' names. A user's own module may be called the same: as it is comes first.
        candidates = (name, self.plain(name), _without_compile(name))
        known = next((one for one in candidates if one.rpartition(".")[0] in self._own), name)
        module, _, leaf = known.rpartition(".")
        module = self._own.get(module, module)
        return f"{module}.{leaf}" if module else leaf

    def modules(self) -> dict[str, nn.Module]:
        """The model's modules by plain name, without the wrappers."""
        modules = dict(self._model.named_modules(remove_duplicate=False))
        return {plain: modules[own] for plain, own in self._own.items()}

    def parameters(self) -> dict[str, nn.Parameter]:
        """The model's parameters by plain name. A tied parameter has several names."""
        return {self.plain(name): tensor for name, tensor in self._model.named_parameters(remove_duplicate=False)}

    def buffers(self) -> dict[str, torch.Tensor]:
        """The model's buffers by plain name. A shared buffer has several names."""
        return {self.plain(name): tensor for name, tensor in self._model.named_buffers(remove_duplicate=False)}

    def state_dict(self) -> dict[str, Any]:
        """The model's state by plain name."""
        state: dict[str, Any] = self._model.state_dict()
        return _renamed(state, self.plain, self.plain) if self._wrapped else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state that `state_dict` returned, with the same or other wrappers, or one of an old checkpoint.

        Raises:
            RuntimeError: it does not fit; as `nn.Module.load_state_dict`.
        """
        if self._wrapped or any(_COMPILED in name for name in state):
            state = _renamed(state, self.own, lambda module: self.own(f"{module}.").removesuffix("."))
        self._model.load_state_dict(state)


def without_compile(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state of an old checkpoint by the names that the model has without `torch.compile`."""
    if not any(isinstance(name, str) and _COMPILED in name for name in state):
        return state
    renamed = _renamed(state, _without_compile, _without_compile)
    return renamed if len(renamed) == len(state) else state


def _without_compile(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _is_wrapped(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether this module is held by a wrapper of torch, and not by a module of the user's under such a name."""
    holder, _, attribute = name.rpartition(".")
    if attribute == _COMPILED:
        return type(modules[holder]).__module__.startswith("torch.")
    return attribute == "module" and isinstance(modules[holder], DistributedDataParallel | nn.DataParallel)


def _renamed(
    state: Mapping[str, Any], rename: Callable[[str], str], rename_module: Callable[[str], str]
) -> dict[str, Any]:
    renamed: OrderedDict[str, Any] = OrderedDict((rename(name), value) for name, value in state.items())
    versions = getattr(state, "_metadata", None)  # torch keeps the version of each module's state there
    if versions is not None:
        renamed._metadata = {rename_module(name): value for name, value in versions.items()}  # type: ignore[attr-defined]
    return renamed
