"""Refuses models and options that cannot have the same bits at any world size. Each error says why, and what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from typing import NoReturn

import torch
from torch import nn

from minetorch.distributed.world import World
from minetorch.errors import ConfigurationError
from minetorch.options.strategies import Exact
from minetorch.strategies.exact.statistics import keeps_statistics


def check_exact(
    options: Exact, world: World, model: nn.Module, optimizer: torch.optim.Optimizer, *, split_batches: bool
) -> None:
    """Refuse what can be checked before the training.

    Raises:
        ConfigurationError: with the first reason found.
    """
    for reason in chain(
        _reasons_of_options(options, world, split_batches),
        _reasons_of_device(world.device),
        _reasons_of_model(model, optimizer),
    ):
        raise ConfigurationError(f'strategy="exact": {reason}')


def _reasons_of_options(options: Exact, world: World, split_batches: bool) -> Iterator[str]:
    if not split_batches:
        yield (
            "pass split_batches=True, too. What a step sees may not depend on the number of workers, so batch_size "
            "must be that of all workers together; now it is that of each."
        )
    if world.size > options.virtual_shards:
        yield (
            f"virtual_shards={options.virtual_shards} can be spread over {options.virtual_shards} workers at most, "
            f"and there are {world.size}. Start fewer, or begin a new run with Exact(virtual_shards={world.size}) or "
            "more shards."
        )


def _reasons_of_device(device: torch.device) -> Iterator[str]:
    if device.type not in ("cpu", "cuda"):
        yield f"not on {device.type!r}, whose kernels are not known to give the same bits twice. Use a CPU or CUDA."
    if device.type != "cuda":
        return
    if not torch.are_deterministic_algorithms_enabled() or torch.is_deterministic_algorithms_warn_only_enabled():
        yield (
            "some CUDA kernels add up in an order that changes from call to call. Call "
            "torch.use_deterministic_algorithms(True) before the Trainer is made, and set "
            "CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment."
        )
    if torch.backends.cudnn.benchmark:
        yield "cuDNN's benchmark chooses kernels by their speed. Set torch.backends.cudnn.benchmark = False."


def _reasons_of_model(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[str]:
    for name, module in model.named_modules():
        label = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, nn.SyncBatchNorm):
            yield (
                f"{label} takes its statistics over all ranks, in an order that depends on their number. Use "
                "BatchNorm, of which each virtual shard has statistics of its own, or GroupNorm or LayerNorm."
            )
        if _is_compiled(module):
            yield (
                f"{label} is compiled by torch.compile, which makes its kernels after the shapes that a rank comes to "
                "see, and these depend on the number of workers. Pass the model as it was before."
            )
    own = {id(parameter) for parameter in model.parameters()}
    if not own.issuperset(id(p) for group in optimizer.param_groups for p in group["params"]):
        yield (
            "the optimizer has parameters that are not the model's, so that no checkpoint would hold them. Make them "
            "part of the model, or leave them out of the optimizer."
        )
    for name, parameter in model.named_parameters():
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            yield (
                f"{name} has a hook for its accumulated gradient (register_post_accumulate_grad_hook), which would see "
                "that of one virtual shard. Remove it; gradients can be looked at in a hook of the Trainer."
            )


def _is_compiled(module: nn.Module) -> bool:
    # The import takes a second. A script that compiles has imported it already.
    dynamo = sys.modules.get("torch._dynamo")
    return module._compiled_call_impl is not None or (dynamo is not None and isinstance(module, dynamo.OptimizedModule))


def refuse_gradients(model: nn.Module) -> NoReturn:
    """Name the gradients of a shard's backward that cannot be summed.

    Raises:
        ConfigurationError: always.
    """
    trainable = [(name, p.grad) for name, p in model.named_parameters() if p.requires_grad]
    without = ", ".join(name for name, gradient in trainable if gradient is None)
    if without:
        raise ConfigurationError(
            f'The loss does not depend on these parameters: {without}. With strategy="exact" every trainable parameter '
            "must have a gradient in every virtual shard. Freeze those that are not used: "
            "parameter.requires_grad_(False). Those that are used at times can be made part of every loss: "
            "loss + 0 * parameter.sum()."
        )
    sparse = ", ".join(name for name, gradient in trainable if gradient is not None and gradient.is_sparse)
    raise ConfigurationError(
        f'These parameters have sparse gradients: {sparse}. With strategy="exact" use dense ones (sparse=False).'
    )


class BufferGuard:
    """Checks that no forward changes a buffer, except those that `RunningStatistics` sums up.

    Other changes would depend on the number of this rank's shards and on their samples, and so on the number of ranks.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = [
            (module, name, f"{prefix}.{name}" if prefix else name)
            for prefix, module in model.named_modules()
            if not keeps_statistics(module)
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._before: list[tuple[torch.Tensor | None, int]] = []
        self._copies: list[torch.Tensor | None] | None = None
        self._began = False

    def begin(self) -> None:
        """Record the buffers at the start of an iteration."""
        buffers = [module._buffers[name] for module, name, _ in self._places]
        self._before = [(buffer, -1 if buffer is None else buffer._version) for buffer in buffers]
        # Some kernels write without a new version number. So the first iteration also compares the values.
        self._copies = None if self._began else [None if buffer is None else buffer.clone() for buffer in buffers]
        self._began = True

    def check(self) -> None:
        """Check the buffers after the iteration's shards.

        Raises:
            ConfigurationError: a buffer was changed.
        """
        for index, ((module, name, label), (before, version)) in enumerate(
            zip(self._places, self._before, strict=True)
        ):
            now = module._buffers[name]
            same = now is before and (now is None or now._version == version)
            copy = None if self._copies is None else self._copies[index]
            if not same or (now is not None and copy is not None and not torch.equal(now, copy)):
                raise ConfigurationError(
                    f'strategy="exact": the forward of {type(module).__name__} changes its buffer {label!r}, as often '
                    "as a rank has virtual shards. Of such modules only those of torch.nn with running statistics "
                    "(BatchNorm, InstanceNorm) are known here. Use another, or put it into eval mode."
                )
