"""Trains PyTorch models, on one CPU or on many GPUs, and never loses work.

What needs torch is imported when it is first used, so that the `minetorch` command answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minetorch.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CollectiveError,
    ConfigurationError,
    MinetorchError,
    NotFiniteError,
    ProofError,
    RanksDifferError,
    RemoteError,
    RunInUseError,
    RunVanishedError,
    StoppedEarly,
    StorageError,
    SupersededError,
    WorkersFailedError,
)
from minetorch.lazy import lazily
from minetorch.version import __version__

if TYPE_CHECKING:
    from minetorch.checkpoint.loading import load
    from minetorch.checkpoint.stateful import Stateful
    from minetorch.distributed.world import World
    from minetorch.drawers import Drawer, MatplotlibDrawer, SqlDrawer, TensorboardDrawer
    from minetorch.hooks import HOOK_POINTS, main_only
    from minetorch.options.checkpoints import Checkpoints
    from minetorch.options.strategies import DDP, Exact
    from minetorch.trainer import Trainer

__all__ = [
    "DDP",
    "HOOK_POINTS",
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "Checkpoints",
    "CollectiveError",
    "ConfigurationError",
    "Drawer",
    "Exact",
    "MatplotlibDrawer",
    "MinetorchError",
    "NotFiniteError",
    "ProofError",
    "RanksDifferError",
    "RemoteError",
    "RunInUseError",
    "RunVanishedError",
    "SqlDrawer",
    "Stateful",
    "StoppedEarly",
    "StorageError",
    "SupersededError",
    "TensorboardDrawer",
    "Trainer",
    "WorkersFailedError",
    "World",
    "__version__",
    "load",
    "main_only",
]

_MODULES = {
    "DDP": "options.strategies",
    "HOOK_POINTS": "hooks",
    "Checkpoints": "options.checkpoints",
    "Drawer": "drawers",
    "Exact": "options.strategies",
    "MatplotlibDrawer": "drawers",
    "SqlDrawer": "drawers",
    "Stateful": "checkpoint.stateful",
    "TensorboardDrawer": "drawers",
    "Trainer": "trainer",
    "World": "distributed.world",
    "load": "checkpoint.loading",
    "main_only": "hooks",
}


__getattr__ = lazily(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
