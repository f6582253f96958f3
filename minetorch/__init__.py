"""Trains PyTorch models, on one CPU or on many GPUs, and never loses work.

What needs torch is imported when it is first used, so that the `minetorch` command answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from minetorch.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CollectiveError,
    ConfigurationError,
    MinetorchError,
    ProofError,
    RemoteError,
    RunInUseError,
    StoppedEarly,
    StorageError,
    SupersededError,
)
from minetorch.version import __version__

if TYPE_CHECKING:
    from minetorch.drawers import Drawer
    from minetorch.hooks import HOOK_POINTS, main_only
    from minetorch.loading import load
    from minetorch.stateful import Stateful
    from minetorch.trainer import Trainer
    from minetorch.world import World

__all__ = [
    "HOOK_POINTS",
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "CollectiveError",
    "ConfigurationError",
    "Drawer",
    "MinetorchError",
    "ProofError",
    "RemoteError",
    "RunInUseError",
    "Stateful",
    "StoppedEarly",
    "StorageError",
    "SupersededError",
    "Trainer",
    "World",
    "__version__",
    "load",
    "main_only",
]

_MODULES = {
    "HOOK_POINTS": "hooks",
    "Drawer": "drawers",
    "Stateful": "stateful",
    "Trainer": "trainer",
    "World": "world",
    "load": "loading",
    "main_only": "hooks",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
