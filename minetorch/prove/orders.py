"""What `minetorch prove` wants of the Trainers in the processes that it starts. The only thing that they share.

| variable | meaning |
|---|---|
| MINETORCH_PROVE | folder that takes the place of every `alchemistic_directory`; its `orders.json` holds the `Orders` |
"""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minetorch.checkpoint.names import parse_resume
from minetorch.errors import ConfigurationError
from minetorch.options.settings import Settings

VARIABLE = "MINETORCH_PROVE"

RECORDS = "proof"
"""The folder of a run in which its Trainer writes down what it does."""

_FILE = "orders.json"
_RUNS = "runs"
_KILLS = "kills"
_REFUSAL = "refusal.txt"

What = Literal["rank", "all", "notice"]
"""SIGKILL to one rank, or to all, or SIGTERM to one."""


@dataclass(frozen=True)
class Kill:
    """An end that a process brings upon itself, once."""

    run: str
    """Of the Trainers in the script, the one that is to be killed: its run's path below `Orders.runs`."""
    step: int
    """After so many optimizer steps."""
    what: What
    rank: int
    """Who sends the signal, which goes to itself or to all."""


@dataclass(frozen=True)
class Orders:
    """One run of the script, be it of one start or of several."""

    folder: Path
    """Where all of it is kept."""
    persist_steps: int
    """For a script that does not say itself how often to save."""
    steps: int | None = None
    """The optimizer steps after which each Trainer ends."""
    kills: tuple[Kill, ...] = ()

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Orders | None:
        """The orders that this process was started with, if any.

        Raises:
            ConfigurationError: the variable names no folder with orders.
        """
        folder = environ.get(VARIABLE)
        if not folder:
            return None
        try:
            content = json.loads(Path(folder, _FILE).read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{VARIABLE}={folder!r} is set by `minetorch prove` for the scripts that it runs: unset it ({error})"
            ) from None
        kills = tuple(Kill(**kill) for kill in content.pop("kills"))
        return cls(folder=Path(folder), kills=kills, **content)

    def give(self) -> dict[str, str]:
        """Write the orders down. Returns the variable for the processes that are to find them."""
        content = dataclasses.asdict(self)
        del content["folder"]
        for folder in (self.runs, self.folder / _KILLS):
            folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _FILE).write_text(json.dumps(content))
        return {VARIABLE: str(self.folder)}

    @property
    def runs(self) -> Path:
        """What stands for the user's own directories."""
        return self.folder / _RUNS

    def directory(self, alchemistic_directory: str | os.PathLike[str]) -> Path:
        """What stands for this one of the user's directories."""
        return self.runs / f"{zlib.crc32(os.fsencode(alchemistic_directory)):08x}"

    def settings(self, settings: Settings) -> Settings:
        """The user's settings, with checkpoints to go on from and no clock that decides anything."""
        checkpoints = settings.checkpoints
        unlimited = checkpoints.keep_last is None and checkpoints.keep_best is None
        # A name is that of a checkpoint in the user's own folder, of which nothing is here.
        is_name = not isinstance(settings.resume, bool) and parse_resume(settings.resume).kind != "elsewhere"
        return dataclasses.replace(
            settings,
            resume=True if is_name else settings.resume,
            checkpoints=dataclasses.replace(
                checkpoints,
                every_steps=checkpoints.every_steps or self.persist_steps,
                every_minutes=None,
                keep_last=3 if unlimited else checkpoints.keep_last,
            ),
            max_time=None,
            ledger=True,
        )

    def check(self, settings: Settings) -> None:
        """Look whether the script will end.

        Raises:
            ConfigurationError: it never does.
        """
        if settings.max_epochs is None and self.steps is None:
            message = "the script has no max_epochs, and would train for ever: give --steps N to end it after N steps"
            (self.folder / _REFUSAL).write_text(message)
            raise ConfigurationError(message)

    def refusal(self) -> str | None:
        """Why the Trainer cannot be proved, if it has said so."""
        file = self.folder / _REFUSAL
        return file.read_text() if file.exists() else None

    def next_kill(self, run: str, step: int) -> tuple[int, Kill] | None:
        """The number and what is to be done of the kill that is due at this step of a run, unless it has been done."""
        return next(
            (
                (number, kill)
                for number, kill in enumerate(self.kills)
                if (kill.run, kill.step) == (run, step) and number not in self.done()
            ),
            None,
        )

    def begin_kill(self, number: int) -> None:
        """Note that a kill is being done, for it not to be done again after the restart."""
        (self.folder / _KILLS / str(number)).touch()

    def done(self) -> set[int]:
        """The numbers of the kills that were done."""
        return {int(file.name) for file in (self.folder / _KILLS).iterdir()}
