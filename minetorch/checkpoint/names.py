"""The names of checkpoints: those that Minetorch makes, those that a user gives, those asked for. Pure.

A checkpoint's own name, `g0002-000007-s000000840-3fa9c1`, says which start of the run wrote it
(generation), as its how-manieth save (sequence), after how many optimizer steps, and a random token that
keeps two writers from ever writing one file. Names sort as checkpoints supersede each other, so that the
newest is also the last in a file listing.
"""

from __future__ import annotations

import operator
import os
import re
import secrets
from dataclasses import dataclass
from typing import Literal

from minetorch.errors import ConfigurationError, in_brief

PAYLOAD_SUFFIX = ".pth.tar"
MANIFEST_SUFFIX = ".json"
CURVES_SUFFIX = ".curves"
LATEST = "latest"
BEST = "best"

_NAME = re.compile(r"g([0-9]{4,18})-([0-9]{6,18})-s([0-9]{9,18})-([0-9a-f]{6})")
_ALIAS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
EPOCH = re.compile(r"epoch_([0-9]{1,18})")
"""The name of the checkpoint at the end of an epoch."""


@dataclass(frozen=True, order=True)
class CheckpointName:
    """A checkpoint's own name in parts; ordered as checkpoints supersede each other."""

    generation: int
    """Counts the starts of the run, from 1."""
    sequence: int
    """Counts the saves of one generation, from 1."""
    step: int
    """Optimizer steps taken."""
    token: str
    """Six random hexadecimal digits."""

    @classmethod
    def new(cls, generation: int, sequence: int, step: int) -> CheckpointName:
        """A name that no one else has."""
        return cls(generation, sequence, step, secrets.token_hex(3))

    @classmethod
    def parse(cls, text: str) -> CheckpointName | None:
        """The name in parts, or None if `text` is not the name of a checkpoint."""
        match = _NAME.fullmatch(text)
        if match is None:
            return None
        name = cls(int(match[1]), int(match[2]), int(match[3]), match[4])
        # "g00001-…" would be a second spelling of "g0001-…": one checkpoint has one name.
        return name if str(name) == text else None

    @classmethod
    def of_file(cls, file: str) -> CheckpointName | None:
        """The checkpoint that a file belongs to, or None if it is some other file."""
        for suffix in (PAYLOAD_SUFFIX, MANIFEST_SUFFIX, CURVES_SUFFIX):
            if file.endswith(suffix):
                return cls.parse(file.removesuffix(suffix))
        return None

    def __str__(self) -> str:
        return f"g{self.generation:04d}-{self.sequence:06d}-s{self.step:09d}-{self.token}"

    @property
    def payload(self) -> str:
        """The file that holds the state."""
        return f"{self}{PAYLOAD_SUFFIX}"

    @property
    def curves(self) -> str:
        """The file that holds the points of the run's curves."""
        return f"{self}{CURVES_SUFFIX}"

    @property
    def manifest(self) -> str:
        """The file that commits the checkpoint."""
        return f"{self}{MANIFEST_SUFFIX}"

    @property
    def files(self) -> tuple[str, ...]:
        """All its files in the order in which to delete them: there is no manifest without what it commits."""
        return self.manifest, self.curves, self.payload


def epoch_alias(epoch: int) -> str:
    """The name of the checkpoint at the end of an epoch (1-based)."""
    return f"epoch_{epoch}"


def alias_problem(alias: object) -> str | None:
    """Why a user may not call a checkpoint so, or None if they may."""
    if not isinstance(alias, str):
        return f"it is a {type(alias).__name__}, not a string"
    if not _ALIAS.fullmatch(alias):
        return "a name has 1 to 100 letters, digits, '.', '_' or '-', and begins with neither '.' nor '-'"
    if alias in (LATEST, BEST) or alias.startswith("epoch_"):
        return "'latest', 'best' and 'epoch_N' are names that Minetorch gives itself"
    if _looks_like_number(alias):
        return "a number means an epoch when resuming"
    if alias.endswith((PAYLOAD_SUFFIX, MANIFEST_SUFFIX)) or CheckpointName.parse(alias):
        return "it looks like the name of a checkpoint's file"
    return None


def check_alias(alias: str) -> str:
    """The name itself.

    Raises:
        ConfigurationError: a user may not call a checkpoint so.
    """
    problem = alias_problem(alias)
    if problem is not None:
        raise ConfigurationError(f"a checkpoint cannot be named {alias!r}: {problem}")
    return alias


def _looks_like_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Wanted:
    """What `resume=` asks for."""

    kind: Literal["fresh", "newest", "epoch", "name", "elsewhere"]
    text: str = ""
    """The name ("name") or the path or URL ("elsewhere")."""
    epoch: int = 0
    """The epoch, from 1 ("epoch")."""


def parse_resume(resume: bool | int | str | os.PathLike[str]) -> Wanted:
    """What `resume=` asks for.

    `True` is the newest good checkpoint, `False` none. A number, `"3"`, `"epoch_3"` and `"epoch_3.pth.tar"` are
    the end of epoch 3. Whatever holds a slash or begins with `~` is a path or URL of a file; the rest is a name or
    the name of a file in the run's own `models` folder.

    Raises:
        ConfigurationError: it is none of these.
    """
    if isinstance(resume, bool):  # before int, because True is an int
        return Wanted("newest" if resume else "fresh")
    if isinstance(resume, os.PathLike):
        return Wanted("elsewhere", text=os.fsdecode(resume))
    if isinstance(resume, str):
        return _parse_text(resume)
    try:
        epoch = operator.index(resume)  # NumPy's integers too
    except (TypeError, ValueError, RuntimeError):  # a tensor with several elements
        epoch = -1
    if epoch < 0 or epoch.bit_length() > 63:
        raise ConfigurationError(f"resume={in_brief(resume)}: {_RESUME_FORMS}")
    return Wanted("epoch", epoch=epoch)


def _parse_text(text: str) -> Wanted:
    if not text.strip() or "\0" in text:
        raise ConfigurationError(f"resume={in_brief(text)}: {_RESUME_FORMS}")
    if "/" in text or text.startswith("~"):
        return Wanted("elsewhere", text=text)
    stem = text.removesuffix(PAYLOAD_SUFFIX)
    match = EPOCH.fullmatch(stem)
    if match is not None:
        return Wanted("epoch", epoch=int(match[1]))
    if re.fullmatch(r"[0-9]{1,18}", text):
        return Wanted("epoch", epoch=int(text))
    return Wanted("name", text=text)


_RESUME_FORMS = (
    "give True (the newest checkpoint), False (from scratch), an epoch (3), a name ('best', 'latest', 'epoch_3', "
    "one of your own), the name of a checkpoint file, or its path or URL"
)
