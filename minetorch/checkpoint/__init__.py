"""Checkpoints: saved atomically to any storage, verified when read, kept and dropped by plan.

Everything here runs on rank 0 and knows nothing of ranks; other ranks only call `decode` on the bytes they are sent.
What needs torch is imported when it is first used: manifests can be listed and files copied without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from minetorch.checkpoint.manifest import Manifest
from minetorch.checkpoint.names import check_alias, parse_resume
from minetorch.checkpoint.store import Store

if TYPE_CHECKING:
    from minetorch.checkpoint.checkpointer import Checkpointer
    from minetorch.checkpoint.finder import Checkpoint
    from minetorch.checkpoint.reader import decode

__all__ = ["Checkpoint", "Checkpointer", "Manifest", "Store", "check_alias", "decode", "parse_resume"]

_MODULES = {"Checkpoint": "finder", "Checkpointer": "checkpointer", "decode": "reader"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
