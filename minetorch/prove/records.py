"""Reads what the Trainers of a run of the script have written down."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minetorch.prove.orders import RECORDS

OBSERVED = ("samples", "data", "loss", "gradients", "settings", "tensors")
"""What is observed of an iteration, in the order in which it comes about."""

_DIGITS = 8


@dataclass(frozen=True)
class Row:
    """What one rank has observed of one iteration; or, with iteration `BEGUN`, of the moment when it was started."""

    generation: int
    rank: int
    epoch: int
    iteration: int
    step: int
    """Optimizer steps that are done with it."""
    values: Mapping[str, Any]
    """By names of `OBSERVED`, and "generators"; what was not observed is missing or None."""
    names: Mapping[str, Sequence[str]]
    """Of the tensors in "gradients" and "tensors", in order."""

    @property
    def at(self) -> tuple[int, int]:
        """Epoch and iteration."""
        return self.epoch, self.iteration

    def parts(self, what: str) -> dict[str, str]:
        """The digest of each tensor in "gradients" or "tensors", by name."""
        text = self.values[what]
        names = self.names.get(what, ())
        return {name: text[at * _DIGITS : (at + 1) * _DIGITS] for at, name in enumerate(names)}


@dataclass(frozen=True)
class Start:
    """One rank's record of one start of a run."""

    begun: Row
    """The state before its first iteration, of which only "settings" and "tensors" are observed."""
    world_size: int
    facts: Mapping[str, Any]
    """What else its first line has."""
    rows: Sequence[Row]
    end: Mapping[str, Any] | None
    """Its last line, if it came to that."""


@dataclass(frozen=True)
class Recording:
    """All starts of one run."""

    name: str
    """Its folder below that of all runs."""
    folder: Path
    starts: Mapping[int, Mapping[int, Start]] = field(default_factory=dict)
    """By generation and rank."""

    @property
    def last_step(self) -> int:
        """The highest step of all."""
        return max((row.step for start in self.all() for row in (start.begun, *start.rows)), default=0)

    def all(self) -> Iterator[Start]:
        """Each start on each rank."""
        for ranks in self.starts.values():
            yield from ranks.values()

    def rows(self) -> Iterator[Row]:
        """Every iteration on every rank, those that were done again after a kill included, as time went."""
        for ranks in self.starts.values():
            rows = [row for start in ranks.values() for row in start.rows]
            yield from sorted(rows, key=lambda row: (row.at, row.rank))


def read(runs: Path) -> dict[str, Recording]:
    """Every run that has recordings below a folder, by name."""
    found = {}
    for folder in sorted(runs.glob(f"**/{RECORDS}")):
        starts: dict[int, dict[int, Start]] = {}
        for file in sorted(folder.glob("g*.jsonl")):
            start = _read_start(file)
            if start is not None:
                starts.setdefault(start.begun.generation, {})[start.begun.rank] = start
        name = folder.parent.relative_to(runs).as_posix()
        found[name] = Recording(name, folder.parent, starts)
    return found


def _read_start(file: Path) -> Start | None:
    begun: Row | None = None
    facts: dict[str, Any] = {}
    names: dict[str, Sequence[str]] = {}
    rows: list[Row] = []
    end: Mapping[str, Any] | None = None
    with file.open() as lines:
        for line in lines:
            if not line.endswith("\n"):
                break  # its process was killed while it wrote
            entry = json.loads(line)
            if "names" in entry:
                names = {**names, **entry["names"]}
            elif "start" in entry:
                facts = entry["start"]
                begun = _row(facts, facts["generation"], facts["rank"], names)
            elif "row" in entry and begun is not None:
                rows.append(_row(entry["row"], begun.generation, begun.rank, names))
            elif "end" in entry:
                end = entry["end"]
    return None if begun is None else Start(begun, facts["world_size"], facts, rows, end)


def _row(entry: Mapping[str, Any], generation: int, rank: int, names: Mapping[str, Sequence[str]]) -> Row:
    values = {key: entry[key] for key in (*OBSERVED, "generators") if key in entry}
    return Row(generation, rank, entry["epoch"], entry["iteration"], entry["step"], values, names)
