"""Checkpoints: saved atomically to any storage, verified when read, kept and dropped by plan.

Everything here runs on rank 0 and knows nothing of ranks; other ranks only call `decode` on the bytes they are sent.
"""

from minetorch.checkpoint.checkpointer import Checkpointer
from minetorch.checkpoint.finder import Checkpoint
from minetorch.checkpoint.manifest import Manifest
from minetorch.checkpoint.names import check_alias, parse_resume
from minetorch.checkpoint.reader import decode
from minetorch.checkpoint.store import Store

__all__ = ["Checkpoint", "Checkpointer", "Manifest", "Store", "check_alias", "decode", "parse_resume"]
