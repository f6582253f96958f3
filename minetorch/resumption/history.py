"""The starts of a run as plain data: time, host, checkpoint, and how the previous start ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from minetorch.checkpoint.schema import WrongKindError, check_start

Ended = Literal["finished", "stopped early", "interrupted", "failed", "killed"]
"""Killed: it left no record of its end. Interrupted: by Ctrl-C. Stopped early: by a signal, a deadline or a hook."""

NEWEST = 1000
"""The number of starts that are kept, besides the first. Each takes about 250 bytes of a checkpoint."""


@dataclass(frozen=True)
class Start:
    """One start of a run."""

    time: float
    """When training could begin, as Unix time in seconds."""
    host: str
    """The machine of rank 0."""
    world_size: int
    generation: int
    """The number of this start in its directory, from 1."""
    checkpoint: str | None
    """File name, path or URL of the checkpoint that it resumed from; None: from scratch."""
    epoch: int
    """The epoch of that checkpoint; 0 from scratch."""
    step: int
    """The number of optimizer steps in that checkpoint."""
    steps_lost: int | None
    """Steps that the previous start did after that checkpoint, at least; None: not known."""
    down_s: float | None
    """Seconds since the last sign of life of the previous start; None: not known, or there was no previous start."""
    load_s: float
    """Seconds to find, read and load the checkpoint."""
    ended: Ended | None
    """How the previous start ended; None: not known, or there was no previous start."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Start | None:
        """Read the result of `asdict`; None for anything else."""
        try:
            check_start(values)
            return cls(**{field.name: values[field.name] for field in fields(cls)})
        except (KeyError, WrongKindError):
            return None


class History:
    """The run's starts, oldest first: the first one, and the newest `NEWEST`."""

    def __init__(self) -> None:
        self.starts: tuple[Start, ...] = ()

    def add(self, starts: Iterable[Start]) -> None:
        """Add newer starts, oldest first."""
        starts = [*self.starts, *starts]
        self.starts = tuple(starts if len(starts) <= NEWEST + 1 else [starts[0], *starts[-NEWEST:]])

    def state_dict(self) -> list[dict[str, Any]]:
        """The starts as plain data."""
        return [asdict(start) for start in self.starts]

    def load_state_dict(self, states: Iterable[Mapping[str, Any]]) -> None:
        """Restore a state that `state_dict` returned."""
        self.starts = tuple(filter(None, map(Start.from_dict, states)))


def lost_text(start: Start) -> str:
    """The steps that a start lost, for a table: "-" if there was nothing to lose, "?" if not known."""
    if start.steps_lost is not None:
        return f"{start.steps_lost:,}"
    return "-" if start.generation == 1 else "?"


def down_text(start: Start) -> str:
    """The time that a run was down before a start, for a table: "-" if it was not down, "?" if not known."""
    if start.generation == 1 or start.ended == "finished":
        return "-"
    return "?" if start.down_s is None else duration(start.down_s)


def duration(seconds: float) -> str:
    """Seconds as text: `4.2 s`, `12 min`, `5.0 h`, `3.0 d`."""
    for limit, unit, name in ((100.0, 1.0, "s"), (6000.0, 60.0, "min"), (172_800.0, 3600.0, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{0 if name == 'min' else 1}f} {name}"
    return f"{seconds / 86_400:.1f} d"
