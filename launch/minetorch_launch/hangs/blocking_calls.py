"""Names the call that a Python stack is blocked in, and whether other ranks take part in it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

__all__ = ["BlockingCall", "Frame", "Owner", "WaitKind"]

Owner = Literal["user", "library", "trainer"]


@dataclass(frozen=True)
class Frame:
    """One line of a Python stack."""

    file: str
    line: int | None
    function: str
    owner: Owner
    """Whose code it is: the user's, minetorch's Trainer's, or any other library's."""

    shown: str
    """The file as it is shown: relative to the working folder if it is below it."""

    source: str = ""
    """The line's text; empty if it is not available."""


class WaitKind(IntEnum):
    """Whether a wait is for other ranks. The lowest is blamed first."""

    UNRESPONSIVE = 0
    LOCAL = 1
    MAYBE_COLLECTIVE = 2
    COLLECTIVE = 3


@dataclass(frozen=True)
class BlockingCall:
    """The call that a stack is blocked in."""

    name: str
    kind: WaitKind
