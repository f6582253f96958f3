"""Checks of the objects that a Trainer is given, beside its plain `Settings`."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils.data import DataLoader

from minetorch.checkpoint.plain import is_sharded
from minetorch.checkpoint.stateful import Stateful
from minetorch.data.checks import check_loader
from minetorch.errors import ConfigurationError, in_brief
from minetorch.options.checkpoints import Checkpoints
from minetorch.options.other_trainers import instead_of_argument


def refuse_unknown(unknown: Mapping[str, object], constructor: Callable[..., None]) -> None:
    """Refuse arguments that the constructor does not have.

    Raises:
        ConfigurationError: there are some; the message says what to give in the place of each.
    """
    if unknown:
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
        first, *others = ((name, instead_of_argument(name, known)) for name in unknown)
        rest = "".join(f" There is no argument {name!r} either{instead}" for name, instead in others)
        raise ConfigurationError(f"The Trainer has no argument {first[0]!r}{first[1]}{rest}")


def check_place(alchemistic_directory: Any, storage_options: Any) -> None:
    """Refuse what cannot be where a run is kept.

    Raises:
        ConfigurationError: and says which argument it is.
    """
    if not isinstance(alchemistic_directory, str | os.PathLike) or not str(alchemistic_directory).strip():
        raise ConfigurationError(
            "alchemistic_directory must be a path, or a URL such as 's3://bucket/runs'; "
            f"{in_brief(alchemistic_directory)} was given."
        )
    if storage_options is None:
        return
    if not isinstance(storage_options, Mapping) or not all(isinstance(key, str) for key in storage_options):
        # Not shown: there may be a secret in it.
        raise ConfigurationError(
            "storage_options must be a dict of what fsspec takes, such as {'endpoint_url': 'http://127.0.0.1:9000'}, "
            f"or None; {type(storage_options).__name__} was given, or a key that is no string."
        )


def check_objects(model: Any, optimizer: Any, train_dataloader: Any, val_dataloader: Any) -> None:
    """Refuse what is not of the kind that is needed.

    Raises:
        ConfigurationError: and says which argument, what it is, and what it must be.
    """
    _check_kind("model", model, nn.Module, "a torch.nn.Module")
    _check_kind("optimizer", optimizer, torch.optim.Optimizer, "a torch.optim.Optimizer")
    _check_kind("train_dataloader", train_dataloader, DataLoader, "a torch.utils.data.DataLoader")
    if val_dataloader is not None:
        _check_kind("val_dataloader", val_dataloader, DataLoader, "a torch.utils.data.DataLoader, or None")
    check_loader("train_dataloader", train_dataloader)
    if val_dataloader is not None:
        check_loader("val_dataloader", val_dataloader)
    _check_not_sharded(model, optimizer)
    _check_parameters(model)
    _check_optimizer(optimizer)
    own = {id(parameter) for parameter in model.parameters()}
    optimized = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(id(parameter) in own for parameter in optimized):
        raise ConfigurationError(
            "The optimizer holds none of the model's parameters, so training would change nothing. "
            "Make it from this very model: for example torch.optim.SGD(model.parameters(), lr=0.1)."
        )


def check_monitor(
    checkpoints: Checkpoints, val_dataloader: Any, hooks: Mapping[str, Any], plugins: Iterable[Any]
) -> None:
    """Refuse to keep the best checkpoints by a validation loss that there cannot be.

    Raises:
        ConfigurationError: there is no validation data, and no hook that could compute the loss.
    """
    if checkpoints.keep_best is None or checkpoints.monitor != "val_loss" or val_dataloader is not None:
        return
    if hooks.get("after_epoch_end") or any(hasattr(plugin, "after_epoch_end") for plugin in plugins):
        return  # it may set trainer.metrics["val_loss"]; the end of the first epoch shows it
    raise ConfigurationError(
        f"Checkpoints(keep_best={checkpoints.keep_best}) keeps the checkpoints with the best 'val_loss', and without "
        "val_dataloader there is none. Give the Trainer a val_dataloader, or another metric to go by, such as "
        "Checkpoints(monitor='train_loss')."
    )


def check_length(name: str, loader: Any) -> None:
    """Refuse a loader of which it is known that it gives nothing.

    Raises:
        ConfigurationError: an epoch has no batch.
    """
    try:
        batches = len(loader)
    except (TypeError, NotImplementedError):  # a stream, or a sampler that does not say
        return
    if batches == 0:
        raise ConfigurationError(
            f"{name} has no batch: its dataset is empty, or smaller than a batch of all workers, with drop_last=True."
        )


def check_hooks(hooks: Any) -> Mapping[str, Any]:
    """The `hooks` argument, none for None.

    Raises:
        ConfigurationError: it is no mapping of hook points.
    """
    if hooks is None:
        return {}
    if not isinstance(hooks, Mapping):
        raise ConfigurationError(
            "hooks must be a dict of functions by their hook points, such as {'after_epoch_end': my_hook}; "
            f"{in_brief(hooks)} was given."
        )
    return hooks


def check_plugins(plugins: Any) -> list[Any]:
    """The `plugins` argument as a list of its own.

    Raises:
        ConfigurationError: it is no list, but perhaps a single plugin.
    """
    if isinstance(plugins, str | bytes | Mapping | torch.Tensor) or not isinstance(plugins, Iterable):
        raise ConfigurationError(
            f"plugins must be a list of objects, such as [NaNGuard()]; {in_brief(plugins)} was given."
        )
    return list(plugins)


def check_statable(statable: Any) -> dict[str, Stateful]:
    """The `statable` argument as a dict of its own.

    Raises:
        ConfigurationError: it is no mapping of names to objects that can be saved.
    """
    if statable is None:
        return {}
    if not isinstance(statable, Mapping) or not all(isinstance(name, str) for name in statable):
        raise ConfigurationError(
            "statable must be a dict of named objects, such as {'scheduler': scheduler}; "
            f"{in_brief(statable)} was given."
        )
    for name, member in statable.items():
        if isinstance(member, nn.Module | torch.optim.Optimizer) and name in ("model", "optimizer"):
            raise ConfigurationError(f"statable[{name!r}]: the Trainer saves the model and the optimizer by itself.")
        _check_stateful(f"statable[{name!r}]", member)
    return dict(statable)


def stateful_plugins(plugins: Iterable[Any]) -> dict[str, Stateful]:
    """Those plugins that have a state, by the name that their state is kept under: `name`, or their class's.

    Raises:
        ConfigurationError: two of them have the same name, or one has half of the two methods.
    """
    named: dict[str, Stateful] = {}
    for plugin in plugins:
        name = getattr(plugin, "name", None) or type(plugin).__name__
        if not (hasattr(plugin, "state_dict") or hasattr(plugin, "load_state_dict")):
            continue
        _check_stateful(f"plugin {name!r}", plugin)
        if name in named:
            raise ConfigurationError(
                f"Two plugins keep their state as {name!r}. Give each a `name` of its own, so that a resumed run "
                "gives each its own state back."
            )
        named[name] = plugin
    return named


def loss_caller(loss_func: Any) -> Callable[[Any, Any], Any]:
    """The loss function as one that is called with `(trainer, data)`.

    Raises:
        ConfigurationError: it is no function of two arguments.
    """
    if not callable(loss_func):
        raise ConfigurationError(f"loss_func must be a function of (trainer, data); {in_brief(loss_func)} was given.")
    if isinstance(loss_func, nn.Module):
        raise ConfigurationError(
            f"loss_func must be a function of (trainer, data) that calls the model; {type(loss_func).__name__} is "
            "called with a prediction and a target. Write, for example: "
            "def loss_func(trainer, data): return criterion(trainer.model(data[0]), data[1])."
        )
    try:
        signature = inspect.signature(loss_func)
    except (TypeError, ValueError):
        return loss_func  # type: ignore[no-any-return]
    try:
        signature.bind(None, None)
    except TypeError:
        raise ConfigurationError(
            f"loss_func must take two arguments, (trainer, data); this one takes {signature}."
        ) from None
    if list(signature.parameters)[:2] == ["data", "trainer"]:
        return lambda trainer, data: loss_func(data=data, trainer=trainer)
    return loss_func  # type: ignore[no-any-return]


def refuse_loss(loss: Any, device: torch.device) -> NoReturn:
    """Say what is wrong with what the loss function returned, which is to be on `device`.

    Raises:
        ConfigurationError: always.
    """
    if not isinstance(loss, torch.Tensor):
        given = f"{type(loss).__name__} ({in_brief(loss)})"
    elif loss.numel() != 1:
        given = f"a tensor of shape {tuple(loss.shape)}; take its mean, as with loss.mean()"
    elif loss.device != device:
        given = (
            f"one on {loss.device}, and this worker computes on {device}; leave out .cpu() and the like: data and "
            "model are on trainer.device"
        )
    elif loss.is_complex():
        given = f"a complex one ({loss.dtype}), which has no least value; take its .abs() or .real"
    else:
        given = (
            "a loss without a gradient; compute it from trainer.model's output, without .item(), .detach() or "
            "torch.no_grad()"
        )
    raise ConfigurationError(
        f"loss_func must return a tensor with one element that has a gradient; it returned {given}."
    )


def _check_not_sharded(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    # FSDP's first version hides the parts in plain parameters.
    fsdp = next((name for name, module in model.named_modules() if _is_fsdp(module)), None)
    if fsdp is not None:
        raise _sharded(f"The model's module {fsdp!r} is a FullyShardedDataParallel" if fsdp else "The model is sharded")
    for kind, named in ("parameter", model.named_parameters()), ("buffer", model.named_buffers()):
        for name, tensor in named:
            if is_sharded(tensor):
                raise _sharded(f"The model's {kind} {name} is a {type(tensor).__name__}")
    optimized = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    held = [value for state in optimizer.state.values() for value in state.values()]
    for value in (*optimized, *held):
        if is_sharded(value):
            raise _sharded(f"The optimizer holds a {type(value).__name__}")


def _is_fsdp(module: nn.Module) -> bool:
    return any(
        kind.__name__ == "FullyShardedDataParallel" and kind.__module__.startswith("torch.distributed.")
        for kind in type(module).__mro__
    )


def _sharded(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what}: each rank has only a part of it. Sharded models are not supported yet. Give the Trainer the whole "
        "model, without fully_shard and the like; with several workers it wraps the model in DDP."
    )


def _check_parameters(model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ConfigurationError(f"The model ({type(model).__name__}) has no parameters, so there is nothing to train.")
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigurationError(
            f"All parameters of the model ({type(model).__name__}) are frozen, so there is nothing to train. Call "
            "requires_grad_() on those that are to learn, before the Trainer is made."
        )
    meta = next((name for name, parameter in parameters.items() if parameter.is_meta), None)
    if meta is not None:
        raise ConfigurationError(
            f"The model's parameter {meta} is on the meta device, and has no values. Make the model on the CPU, or "
            "call its to_empty(device='cpu') and give it its weights."
        )


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    kind = type(optimizer).__name__
    try:
        parameters = [*inspect.signature(type(optimizer).step).parameters.values()][1:]
    except (TypeError, ValueError):  # it does not say what it takes
        parameters = []
    needed = [
        repr(p.name) for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        raise ConfigurationError(
            f"{kind} cannot be used here: its step() needs {', '.join(needed)}, and the Trainer calls step() without "
            "arguments, after one forward and backward. Use another optimizer, such as torch.optim.Adam."
        )
    # An instance exists only where the module is imported; to import it here would cost every run time.
    distributed = sys.modules.get("torch.distributed.optim")
    if distributed is not None and isinstance(optimizer, distributed.ZeroRedundancyOptimizer):
        raise ConfigurationError(
            f"{kind} cannot be used here: each rank has only a part of its state, and a checkpoint holds that of rank "
            "0. Pass the optimizer that it wraps, such as torch.optim.Adam(model.parameters())."
        )


def _check_kind(name: str, value: Any, kind: type, description: str) -> None:
    if not isinstance(value, kind):
        raise ConfigurationError(f"{name} must be {description}; {type(value).__name__} was given.")


def _check_stateful(label: str, member: Any) -> None:
    if not isinstance(member, Stateful):
        raise ConfigurationError(
            f"{label} must have the methods state_dict() and load_state_dict(state), as torch's own classes have; "
            f"{type(member).__name__} does not have both."
        )
