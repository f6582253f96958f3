"""Which samples each step of a run has really trained on: the files that `Trainer(ledger=True)` keeps, and their check.

Each rank of each start of a run has a ledger of its own, in `ledger/` of the run's directory: one file on a local disk,
`g0002.r0001`; elsewhere a part for each checkpoint, `g0002.r0001.p000003`. A file is a line of JSON, the `Start`, and
then rows: the fields of `_FIELDS`, and the indices as 32-bit or 64-bit integers or as JSON.

```python
from minetorch import ledger

book = ledger.read("s3://bucket/runs/plan-a")
print(book.check(samples=50_000))
```
"""

from __future__ import annotations

import dataclasses
import json
import re
import struct
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from minetorch.checkpoint.store import Store
from minetorch.errors import CheckpointNotFoundError

if TYPE_CHECKING:
    import os

FOLDER = "ledger"
"""The folder of a run's directory in which its ledgers are."""

FORMAT = 1

_FILE = re.compile(r"g(\d{4,})\.r(\d{4,})(?:\.p(\d{6,}))?")
_FIELDS = struct.Struct("<IIQQIIIB")
"""Epoch, iteration, position, step, counted, total, bytes of the indices, and how those are written."""

_INT32, _INT64, _JSON = range(3)
_CODES = {_INT32: "i", _INT64: "q"}


@dataclass(frozen=True)
class Start:
    """One start of a run on one rank, and where it went on."""

    generation: int
    """Which start of the run it is, from 1."""
    rank: int
    world_size: int
    resumed_from: str | None
    """Path or URL of the checkpoint that it went on from; None from scratch."""
    parent: int | None
    """The start that wrote this checkpoint; None from scratch, or where it is another run's."""
    epoch: int
    """The epoch that the checkpoint is in or at the end of; 0 from scratch."""
    iteration: int
    """Iterations of that epoch that were done."""
    step: int
    """Optimizer steps that were done."""
    format: int = FORMAT

    def to_line(self) -> bytes:
        """The first line of its file."""
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"

    @property
    def at(self) -> tuple[int, int]:
        """Epoch and iteration after which it began."""
        return self.epoch, self.iteration


@dataclass(frozen=True)
class Row:
    """One rank's part of one iteration."""

    epoch: int
    """From 1."""
    iteration: int
    """Iterations of the epoch that are done with this one: from 1."""
    position: int
    """Units of the epoch that are done with this one, on all ranks: samples, or the user's own batches."""
    step: int
    """Optimizer steps that are done with this iteration."""
    counted: int
    """How many of `indices` count: all, or 0 where the rank borrowed a sample to keep the others company."""
    total: int
    """Samples of all ranks in this iteration."""
    indices: tuple[Any, ...]
    """The samples, as the sampler names them; in a stream, their places in the epoch."""

    @property
    def at(self) -> tuple[int, int]:
        """Epoch and iteration."""
        return self.epoch, self.iteration


def pack(
    epoch: int, iteration: int, position: int, step: int, counted: int, total: int, indices: Sequence[Any]
) -> bytes:
    """A row as bytes; the arguments are `Row`'s fields."""
    try:
        kind, data = _shuffled(indices) or (_INT32, array("i", indices).tobytes())
    except OverflowError:
        kind, data = _INT64, array("q", indices).tobytes()
    except TypeError:
        kind, data = _JSON, json.dumps(list(indices), default=str).encode()
    return _FIELDS.pack(epoch, iteration, position, step, counted, total, len(data), kind) + data


def _shuffled(indices: Sequence[Any]) -> tuple[int, bytes] | None:
    """The indices of a plain permutation, which come as an array: in a third of the time for 256 of them."""
    if not isinstance(indices, array) or indices.typecode != "q" or not indices:
        return None
    values = np.frombuffer(indices, np.int64)
    return (_INT32, values.astype(np.int32).tobytes()) if values.max() < 2**31 else (_INT64, values.tobytes())


def unpack(data: bytes) -> Iterator[Row]:
    """The rows in bytes; one at the end that was not written whole, when its process was killed, is left out."""
    at = 0
    while at + _FIELDS.size <= len(data):
        epoch, iteration, position, step, counted, total, length, kind = _FIELDS.unpack_from(data, at)
        at += _FIELDS.size
        content = data[at : at + length]
        if len(content) < length:
            return
        at += length
        yield Row(epoch, iteration, position, step, counted, total, _indices(kind, content))


def _indices(kind: int, content: bytes) -> tuple[Any, ...]:
    if kind == _JSON:
        return tuple(tuple(index) if isinstance(index, list) else index for index in json.loads(content))
    values = array(_CODES[kind])
    values.frombytes(content)
    return tuple(values)


@dataclass(frozen=True)
class Report:
    """What `Ledger.check` found."""

    epochs: Mapping[int, int]
    """Samples trained on in each epoch."""
    problems: Sequence[str] = ()
    """What is wrong, a sentence each; empty if every sample was trained on once."""

    @property
    def is_exact(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        if self.problems:
            return "\n".join(self.problems)
        epochs = f"{len(self.epochs)} epoch{'s' * (len(self.epochs) != 1)}"
        return f"{epochs}, {sum(self.epochs.values()):,} samples, each exactly once an epoch"


@dataclass(frozen=True)
class Ledger:
    """All ledgers of a run."""

    starts: Mapping[int, Mapping[int, Start]]
    """Every start, by generation and rank."""
    rows: Mapping[int, Mapping[int, Sequence[Row]]]
    """Every row, by generation and rank, in the order in which they were written."""

    def line(self) -> list[tuple[Start, Sequence[Row]]]:
        """The rows that the run's present state came from, in order: rank 0's start, and all ranks' rows, by iteration.

        What a start did after the checkpoint that a later one went on from is not among them.
        """
        line: list[tuple[Start, Sequence[Row]]] = []
        generation, end = max(self.starts, default=None), (float("inf"), 0.0)
        while generation is not None:
            start = next(iter(self.starts[generation].values()))
            rows = [row for own in self.rows[generation].values() for row in own if start.at < row.at <= end]
            line.append((start, sorted(rows, key=lambda row: row.at)))  # stable: ranks stay in order
            generation, end = start.parent if start.parent in self.starts else None, start.at
        return line[::-1]

    def order(self) -> dict[int, list[Any]]:
        """By epoch, the samples in the global order in which they were trained on, whatever rank had them."""
        order: dict[int, list[Any]] = defaultdict(list)
        for _, rows in self.line():
            for row in rows:
                if row.counted:
                    order[row.epoch].extend(row.indices)
        return dict(order)

    def check(self, samples: int | None = None, *, repeats: bool = False) -> Report:
        """Look whether each sample of each epoch was trained on exactly once, over all ranks and starts.

        The last epoch may be under way: no sample of it may have come twice.

        Args:
            samples: samples of a whole epoch, where that is known: fewer are said, but for the last epoch.
            repeats: the run's own sampler draws samples repeatedly, so that only rows that lack or overlap are looked
                for.
        """
        problems = [problem for start, rows in self.line() for problem in _gaps(start, rows)]
        order = self.order()
        for epoch, seen in order.items():
            twice = [index for index, count in Counter(seen).items() if count > 1]
            if twice and not repeats:
                problems.append(f"Epoch {epoch}: {_some(twice)} came more than once.")
            if samples is not None and epoch < max(order) and len(seen) != samples:
                problems.append(f"Epoch {epoch}: {len(seen)} samples, not {samples}.")
        return Report({epoch: len(seen) for epoch, seen in order.items()}, problems)


def _gaps(start: Start, rows: Sequence[Row]) -> Iterator[str]:
    """Iterations that lack, or in which ranks lack, from where the start began."""
    groups: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.at].append(row)
    epoch, iteration = start.at
    for at, group in groups.items():
        if at not in ((epoch, iteration + 1), (epoch + 1, 1)):
            yield f"Epoch {at[0]}: iterations lack between {epoch}:{iteration} and {at[0]}:{at[1]}."
        epoch, iteration = at
        counted = sum(row.counted for row in group)
        if counted != group[0].total:
            yield (
                f"Epoch {at[0]}, iteration {at[1]}: {counted} of {group[0].total} samples are in the ledgers of "
                f"{len(group)} of {start.world_size} ranks."
            )


def _some(indices: Sequence[Any]) -> str:
    shown = ", ".join(map(str, indices[:5]))
    return f"{len(indices)} samples ({shown}{', …' if len(indices) > 5 else ''})"


def read(run: str | os.PathLike[str] | Store, storage_options: Mapping[str, Any] | None = None) -> Ledger:
    """Read all ledgers of a run.

    Args:
        run: path or URL of the run's directory, `{alchemistic_directory}/{code}`.
        storage_options: passed on to fsspec.

    Raises:
        CheckpointNotFoundError: there is no ledger.
        StorageError: the storage could not be listed or read.
    """
    store = (run if isinstance(run, Store) else Store.open(run, storage_options)).child(FOLDER)
    found: dict[tuple[int, int], list[tuple[int, str]]] = defaultdict(list)
    for name in store.list():
        if match := _FILE.fullmatch(name):
            found[int(match[1]), int(match[2])].append((int(match[3] or 0), name))
    if not found:
        raise CheckpointNotFoundError(f"{store.url} has no ledger: a run keeps one with Trainer(ledger=True)")
    starts: dict[int, dict[int, Start]] = defaultdict(dict)
    rows: dict[int, dict[int, list[Row]]] = defaultdict(dict)
    for (generation, rank), parts in sorted(found.items()):
        contents = store.read_many(name for _, name in sorted(parts))
        start, own = _parse(contents.values())
        if start is not None:
            starts[generation][rank], rows[generation][rank] = start, own
    return Ledger(dict(starts), dict(rows))


def _parse(contents: Iterable[bytes]) -> tuple[Start | None, list[Row]]:
    start: Start | None = None
    rows: list[Row] = []
    for data in contents:
        head, newline, body = data.partition(b"\n")
        if newline:
            known = {f.name for f in dataclasses.fields(Start)}
            start = Start(**{key: value for key, value in json.loads(head).items() if key in known})
            rows += unpack(body)
    return start, rows


def file_name(generation: int, rank: int, part: int | None = None) -> str:
    """The name of a rank's file of a start; with `part`, of that part of it."""
    return f"g{generation:04d}.r{rank:04d}" + ("" if part is None else f".p{part:06d}")
