"""Checkpoints: saved atomically to any storage, verified when read, kept and dropped by plan.

Everything here runs on rank 0 and knows nothing of ranks; other ranks only call `decode` on the bytes they are sent.
"""

from .checkpointer import Checkpointer
from .finder import Checkpoint
from .manifest import Manifest
from .names import check_alias, parse_resume
from .reader import decode
from .store import Store

__all__ = ["Checkpoint", "Checkpointer", "Manifest", "Store", "check_alias", "decode", "parse_resume"]
