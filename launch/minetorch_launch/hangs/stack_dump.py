"""Asks the workers of this node for their stacks, and /proc about those that do not answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from minetorch_launch.hangs.shared_memory import SharedMemory
from minetorch_launch.hangs.stack_summary import StackSnapshot

__all__ = ["StackSource", "dump_stacks"]


class StackSource(Protocol):
    """A worker that can be asked for its stacks."""

    @property
    def pid(self) -> int: ...
    @property
    def memory(self) -> SharedMemory: ...
    @property
    def main_thread(self) -> int:
        """Ident of the worker's main thread (``threading.get_ident()``), as its first message tells it; 0 before."""

    @property
    def stacks_fd(self) -> int:
        """The worker's own number of the descriptor that its stacks are written to; it tells it, too."""

    @property
    def has_ended(self) -> bool: ...
    def ask_for_stacks(self) -> None:
        """Send the request over the worker's link. Never blocks and never raises."""

    @property
    def has_answered(self) -> bool:
        """Whether the worker has answered the last request."""


async def dump_stacks(workers: Mapping[int, StackSource], host: str, seconds: float = 2.0) -> list[StackSnapshot]:
    """Ask all workers at once for their stacks.

    Args:
        workers: the workers of this node by global rank.
        host: this node's name.
        seconds: after this a worker counts as unresponsive; half of it is for an answer over the link.
    """
    raise NotImplementedError
