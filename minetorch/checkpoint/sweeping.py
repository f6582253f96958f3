"""What dead writers left in a run's folder, and which of it may be deleted. Pure.

Only what bears the name of a checkpoint, or is a temporary file or an unfinished upload of ours, is ever looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minetorch.checkpoint.names import MANIFEST_SUFFIX, CheckpointName

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from minetorch.checkpoint.entry import Entry, Unfinished

GRACE_S = 3600.0
"""Seconds for which a dead writer's debris is left alone, lest it be of one that lives and is slow."""


@dataclass(frozen=True)
class Debris:
    """What to delete."""

    files: Sequence[str]
    """In this order: a manifest before its payload."""
    unfinished: Sequence[Unfinished]


def debris(
    entries: Sequence[Entry],
    unfinished: Sequence[Unfinished],
    *,
    kept: Collection[CheckpointName],
    dropped: Collection[CheckpointName],
    generation: int,
    now: float,
    grace_s: float = GRACE_S,
) -> Debris:
    """What older starts of a run left.

    Args:
        entries: the files in the folder.
        unfinished: what is begun there and not finished.
        kept: every checkpoint that is to stay, damaged ones too.
        dropped: those that a commit dropped: they need no grace.
        generation: the start of the run that asks; what is its own, or a later one's, is left alone.
        now: Unix time in seconds.
        grace_s: how old all else must be.
    """
    doomed = []
    for entry in entries:
        name = CheckpointName.of_file(entry.name)
        if name is None or entry.is_folder or entry.is_link or name in kept:
            continue
        aged = entry.modified is not None and now - entry.modified >= grace_s
        if name in dropped or (name.generation < generation and aged):
            doomed.append(entry.name)
    return Debris(
        files=sorted(doomed, key=lambda file: not file.endswith(MANIFEST_SUFFIX)),
        unfinished=[item for item in unfinished if now - item.begun >= grace_s and _is_older(item, generation)],
    )


def _is_older(item: Unfinished, generation: int) -> bool:
    """Whether an older start began it; a temporary file on a local disk does not tell, and its age must do."""
    name = CheckpointName.of_file(item.name)
    if name is None:
        return not item.id
    return name.generation < generation
