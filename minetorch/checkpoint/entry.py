"""What a listing says of a file. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A file or folder directly in a store."""

    name: str
    is_folder: bool
    """Also where it is a link to one."""
    size: int
    """Bytes; of no meaning for a folder."""
    modified: float | None
    """Unix time in seconds; None where the storage does not tell."""
    is_link: bool = False
    """Whether it is a symbolic link, which only a local disk has; size and time are then the link's own."""


@dataclass(frozen=True)
class Unfinished:
    """What a writer has begun and not finished: a multipart upload, or a temporary file on a local disk."""

    name: str
    """Of the file that it was to be; on a local disk, its own."""
    begun: float
    """Unix time in seconds."""
    id: str = ""
    """The upload's, for the storage."""
    is_abandoned: bool = False
    """Whether its writer has ended, for sure."""
