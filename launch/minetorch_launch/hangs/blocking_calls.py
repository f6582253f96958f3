"""Names the call that a Python stack is blocked in, and whether other ranks take part in it. Pure.

The name is for the reader, who sees the whole stack as well. Who is to blame depends only on the `WaitKind`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

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
    """Whether a rank waits for other ranks. The lowest is blamed first."""

    UNRESPONSIVE = 0
    LOCAL = 1
    MAYBE_COLLECTIVE = 2
    """Work on a device or a backward pass may contain a collective."""

    COLLECTIVE = 3


@dataclass(frozen=True)
class BlockingCall:
    """The call that a stack is blocked in."""

    name: str
    kind: WaitKind


_COLLECTIVE = re.compile(
    r"/torch/distributed/(?:distributed_c10d|rendezvous|device_mesh|_functional_collectives|nn/functional)\.py:(?!__)"
    r"|/torch/nn/parallel/distributed\.py:__init__$"
)


_MAYBE_COLLECTIVE = re.compile(
    r"/torch/(?:nn/parallel/distributed|distributed/.+|_tensor|autograd/\w+|cuda/\w+|optim/[^/]+)\.py:(?!wrapper$)"
)
# Calls into C that have no frame of their own; only the user's line shows them.
_MAYBE_COLLECTIVE_SOURCE = re.compile(r"\.(item|tolist|cpu|numpy|backward|wait|synchronize)\(")


def find_blocking_call(frames: Sequence[Frame]) -> tuple[BlockingCall, Frame | None]:
    """The call that a stack is blocked in, and the innermost line of the user's own code, which made the call.

    Args:
        frames: innermost first.

    Returns:
        The call, named after the library function that the user's line called: the inner ones are how that works. If
        there is no line of the user's, the frame is the outermost one.
    """
    if not frames:
        return BlockingCall("the launcher's code, before or after the script", WaitKind.LOCAL), None
    at = next((index for index, frame in enumerate(frames) if frame.owner == "user"), None)
    line = frames[-1] if at is None else frames[at]
    called = list(frames if at is None else frames[:at])
    trainer = [frame for frame in called if frame.owner == "trainer"]
    library = [frame for frame in called if frame.owner == "library"]
    kind, frame = _classify(library)
    if kind == WaitKind.LOCAL and _MAYBE_COLLECTIVE_SOURCE.search((called[0] if called else line).source):
        kind = WaitKind.MAYBE_COLLECTIVE
    names = [f"{frame.function} ({_module(frame.file)})"] if frame else []
    if trainer:
        part = next((frame for frame in trainer if frame.file.endswith("/trainer.py")), trainer[0])
        names.append(f"Trainer: {part.function.strip('_').replace('_', ' ')}")
    return BlockingCall(", ".join(names) or "the script's own code", kind), line


def _classify(library: Sequence[Frame]) -> tuple[WaitKind, Frame | None]:
    """The kind of wait, and the outermost of the frames that tell it."""
    for kind, pattern in ((WaitKind.COLLECTIVE, _COLLECTIVE), (WaitKind.MAYBE_COLLECTIVE, _MAYBE_COLLECTIVE)):
        for frame in reversed(library):
            if pattern.search(f"{frame.file}:{frame.function}"):
                return kind, frame
    return WaitKind.LOCAL, library[-1] if library else None


def _module(file: str) -> str:
    """``http.client`` for a file of a library; ``torch.distributed`` for the file of its collectives."""
    inside = re.split(r"/(?:site-packages|dist-packages)/|/python3\.\d+/(?!site-|dist-)", file)[-1]
    inside = inside.removesuffix(".py").removesuffix("/__init__").removesuffix("/distributed_c10d")
    return inside.lstrip("/").replace("/", ".")
