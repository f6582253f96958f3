"""The starts of a run as plain data: when and where, from what it went on, and how the one before had ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from minetorch.checkpoint.schema import WrongKindError, check_start

Ended = Literal["finished", "stopped early", "interrupted", "failed", "killed"]
"""Killed: it went without a word. Interrupted: by Ctrl-C. Stopped early: by a notice, a deadline, a hook."""

NEWEST = 1000
"""How many starts are kept beside the first; one takes about 250 bytes of a checkpoint."""


@dataclass(frozen=True)
class Start:
    """One start of a run."""

    time: float
    """When it went on (or began), as Unix time in seconds."""
    host: str
    """The machine of rank 0."""
    world_size: int
    generation: int
    """Which start of its directory it is, from 1."""
    checkpoint: str | None
    """File name, path or URL of what it went on from; None: from scratch."""
    epoch: int
    """The epoch that this holds; 0 from scratch."""
    step: int
    """Optimizer steps that were done at that point."""
    steps_lost: int | None
    """Steps that the previous start had done after that point: at least so many. None: not known."""
    down_s: float | None
    """Seconds since the last sign of life of the previous start; None: not known, or there was none."""
    load_s: float
    """Seconds that it took to find, read and load the checkpoint."""
    ended: Ended | None
    """How the previous start had ended; None: not known, or there was none."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Start | None:
        """What `asdict` gave; None if it is something else."""
        try:
            check_start(values)
            return cls(**{field.name: values[field.name] for field in fields(cls)})
        except (KeyError, WrongKindError):
            return None


class History:
    """The run's starts, oldest first: the very first, and the newest `NEWEST`."""

    def __init__(self) -> None:
        self.starts: tuple[Start, ...] = ()

    def add(self, starts: Iterable[Start]) -> None:
        """Add starts that are newer than those that are known."""
        starts = [*self.starts, *starts]
        self.starts = tuple(starts if len(starts) <= NEWEST + 1 else [starts[0], *starts[-NEWEST:]])

    def state_dict(self) -> list[dict[str, Any]]:
        """The starts as plain data."""
        return [asdict(start) for start in self.starts]

    def load_state_dict(self, states: Iterable[Mapping[str, Any]]) -> None:
        """Take over what `state_dict` returned."""
        self.starts = tuple(filter(None, map(Start.from_dict, states)))


def lost_text(start: Start) -> str:
    """The steps that a start lost, for a table: "-" where there was nothing to lose, "?" where it is not known."""
    if start.steps_lost is not None:
        return f"{start.steps_lost:,}"
    return "-" if start.generation == 1 else "?"


def down_text(start: Start) -> str:
    """How long a run was down before a start, for a table: "-" where it was not, "?" where it is not known."""
    if start.generation == 1 or start.ended == "finished":
        return "-"
    return "?" if start.down_s is None else duration(start.down_s)


def duration(seconds: float) -> str:
    """Seconds for people: `4.2 s`, `12 min`, `5.0 h`, `3.0 d`."""
    for limit, unit, name in ((100.0, 1.0, "s"), (6000.0, 60.0, "min"), (172_800.0, 3600.0, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{0 if name == 'min' else 1}f} {name}"
    return f"{seconds / 86_400:.1f} d"
