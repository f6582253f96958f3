"""Every error that Minetorch raises on purpose.

```
MinetorchError
├── ConfigurationError (ValueError)      an argument or environment variable is wrong; nothing was written
├── CollectiveError (RuntimeError)       a collective where only one rank runs, or a lost process group
│   └── LostRankError                    a rank is gone, so the others cannot continue
├── RemoteError (RuntimeError)           another rank failed; the ranks that wait for it raise this
├── NotFiniteError (ArithmeticError)     a loss or gradient is NaN or infinite; see the plugin NaNGuard
├── RanksDifferError (RuntimeError)      the ranks do not have the same weights, so there is no one model to save
├── StorageError (OSError)               the storage could not be listed, read or written
│   └── RunVanishedError                 the run's files were renamed, deleted or unmounted while it was training
├── ProofError (RuntimeError)            a script could not be run to its end by `minetorch prove`
├── RunInUseError (RuntimeError)         another process is training this run
├── SupersededError (RuntimeError)       another start of this run has taken it over from this process
├── WorkersFailedError (RuntimeError)    a worker that a notebook has launched failed
└── CheckpointError
    ├── CheckpointNotFoundError          the checkpoint that was asked for does not exist
    ├── CheckpointCorruptError           its bytes are not those that were written
    └── CheckpointMismatchError          it is whole, but belongs to another model, optimizer or format
SystemExit
└── StoppedEarly                         no error: the run has saved and makes way, as a signal asked it to
```
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Iterable


class MinetorchError(Exception):
    """The root of the tree above."""

    def __str__(self) -> str:
        return visible(super().__str__())  # much of it may come from the files of a run that somebody else made


class ConfigurationError(MinetorchError, ValueError):
    """An argument or environment variable is wrong. Raised before anything is written."""


class CollectiveError(MinetorchError, RuntimeError):
    """A collective was called where not every rank can take part."""


class LostRankError(CollectiveError):
    """A rank is gone, so the others cannot continue."""

    is_lost_peer = True  # for the launcher, which then looks for the cause on another rank


class RemoteError(MinetorchError, RuntimeError):
    """Another rank failed in something that all ranks wait for; its message is inside."""

    repeats_peer_error = True  # for the launcher, which then waits for the other rank's own report


class NotFiniteError(MinetorchError, ArithmeticError):
    """A loss or gradient is NaN or infinite; the message says in which batch and where in the model."""


class RanksDifferError(MinetorchError, RuntimeError):
    """The ranks do not have the same weights, so that there is no one model to save; the message names a parameter."""


class StorageError(MinetorchError, OSError):
    """The storage could not be listed, read or written."""

    is_lasting = False
    """Whether it is no use to try again: access is refused, or there is no such bucket."""


class RunVanishedError(StorageError):
    """The run's files are not where they were: renamed, deleted or unmounted while this process trained the run."""

    is_lasting = True


class ProofError(MinetorchError, RuntimeError):
    """A script that `minetorch prove` runs failed by itself, or did not end in time; the message has its last lines."""


class RunInUseError(MinetorchError, RuntimeError):
    """Another process is training this run; the message says which."""


class SupersededError(MinetorchError, RuntimeError):
    """Another start of this run has taken it over from this process; the message says which."""


class WorkersFailedError(MinetorchError, RuntimeError):
    """A worker of `minetorch.notebook.launch` failed; the message says which rank, where and why."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback, which would be the launcher's and tell nothing."""
        return [f"{type(self).__name__}: {self}"]


class CheckpointError(MinetorchError):
    """A checkpoint cannot be used."""


class CheckpointNotFoundError(CheckpointError):
    """The checkpoint that was asked for does not exist; the message lists those that do."""


class CheckpointCorruptError(CheckpointError):
    """The bytes of a checkpoint are not those that were written."""


class CheckpointMismatchError(CheckpointError):
    """A whole checkpoint that does not fit: another format, model or optimizer."""


class StoppedEarly(SystemExit):
    """The run has saved all its work and stopped, since a signal asked this process to end.

    A script that does not catch it ends with exit code 75 (`EX_TEMPFAIL`): the same command goes on from here.
    """

    def __init__(self) -> None:
        super().__init__(os.EX_TEMPFAIL)


_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters other than tab and newline, and the characters that change the direction of text."""


def visible(text: str) -> str:
    r"""Text with something from a file in it, for a terminal: control characters become escapes such as `\u001b`.

    A terminal would follow them: they set its title, clear it, or show text in another order than it is stored in.
    """
    return _INVISIBLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 400


def in_brief(value: object) -> str:
    """A value that somebody else gave, for a message: as Python writes it, cut where it is long."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an int of more digits than Python puts into words
        return f"{type(value).__name__}(…)"


def in_one_line(text: str) -> str:
    """Words with something in them that somebody else gave, for a message: without line breaks, cut where long."""
    return _SHORT.repr(text)[1:-1]


def unknown_name(kind: str, given: object, known: Iterable[str]) -> str:
    """A sentence for a name that is none of `known`, with the nearest one suggested."""
    known = list(known)
    near = difflib.get_close_matches(str(given), known, n=1)
    suggestion = f" Did you mean {near[0]!r}?" if near else ""
    return f"There is no {kind} {in_brief(given)}.{suggestion} Known are {', '.join(map(repr, known))}."
