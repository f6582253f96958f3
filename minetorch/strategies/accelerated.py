"""The parts of accelerate that the Trainer uses: the device, mixed precision, and the move of a batch to the device.

No other file imports accelerate. Its optimizer wrapper and its loaders take more time per step than the rest of the
Trainer, and its DDP wrapper cannot be renewed after a hook has thawed parameters. So this package has its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from torch import nn

from minetorch.distributed.world import World
from minetorch.errors import ConfigurationError

Amp = Literal[False, "bf16", "fp16"]


def placement(device: torch.device) -> Callable[[Any], Any] | None:
    """A function that moves a batch (tensors in lists, dicts, tuples) to the device; None for a CPU."""
    if device.type == "cpu":
        return None
    return lambda data: send_to_device(data, device, non_blocking=True)


def make_accelerator(world: World, amp: Amp) -> Accelerator:
    """Make an Accelerator for this worker's device, with this precision.

    Raises:
        ConfigurationError: the device does not support the precision.
    """
    cpu = world.device.type == "cpu"
    precision = amp or "no"
    shared = AcceleratorState._shared_state
    if shared and (shared.get("_mixed_precision") != precision or shared.get("_cpu") != cpu):
        # accelerate has one state per process and refuses another precision, and a notebook makes many Trainers.
        AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with _environment_for_accelerate(world):
            return Accelerator(cpu=cpu, mixed_precision=precision, step_scheduler_with_optimizer=False)
    except ValueError as error:
        raise ConfigurationError(f"amp={amp!r} cannot be had on {world.device}: {error}") from error


@contextmanager
def _environment_for_accelerate(world: World) -> Iterator[None]:
    """Hide LOCAL_RANK from accelerate where one worker needs no process group, and keep torch's number of threads."""
    names = ("LOCAL_RANK", "OMP_NUM_THREADS")
    saved = {name: os.environ.get(name) for name in names}
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    if world.size == 1:
        os.environ.pop("LOCAL_RANK", None)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def forget_precision(model: nn.Module) -> None:
    """Undo the changes that accelerate made to the model for an earlier Trainer, so that its `amp` has no effect."""
    attributes = vars(model)
    attributes.pop("_is_accelerate_prepared", None)
    forward = attributes.pop("_original_forward", None)
    if forward is not None:
        model.forward = forward
