"""Checkpoints: saved atomically to any storage, verified when read, kept and dropped by plan.

Everything here runs on rank 0 and knows nothing of ranks.
What needs torch is imported when it is first used: manifests can be listed and files copied without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minetorch.checkpoint.manifest import Manifest
from minetorch.checkpoint.names import check_alias, parse_resume
from minetorch.checkpoint.store import Store
from minetorch.lazy import lazily

if TYPE_CHECKING:
    from minetorch.checkpoint.checkpointer import Checkpointer
    from minetorch.checkpoint.finder import Checkpoint
    from minetorch.checkpoint.reader import decode

__all__ = ["Checkpoint", "Checkpointer", "Manifest", "Store", "check_alias", "decode", "parse_resume"]

_MODULES = {"Checkpoint": "finder", "Checkpointer": "checkpointer", "decode": "reader"}

__getattr__ = lazily(__name__, _MODULES)
