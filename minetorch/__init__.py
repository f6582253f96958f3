"""Trains PyTorch models, on one CPU or on many GPUs, and never loses work."""

from minetorch.drawers import Drawer
from minetorch.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CollectiveError,
    ConfigurationError,
    MinetorchError,
    RemoteError,
    StoppedEarly,
    StorageError,
)
from minetorch.hooks import HOOK_POINTS, main_only
from minetorch.stateful import Stateful
from minetorch.trainer import Trainer
from minetorch.version import __version__
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
    "RemoteError",
    "Stateful",
    "StoppedEarly",
    "StorageError",
    "Trainer",
    "World",
    "__version__",
    "main_only",
]
