"""Where two runs of one script part. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minetorch.prove.records import OBSERVED, Recording, Row


@dataclass(frozen=True)
class Difference:
    """The first thing in which a run differs from the uninterrupted one."""

    what: str
    """One of `OBSERVED`."""
    name: str
    """The tensor, or the setting; "" where there is but one."""
    at_start: bool
    """Whether it is there as soon as a start has taken over its checkpoint, before any iteration."""
    generation: int
    """The start in which it is."""
    rank: int
    epoch: int
    iteration: int
    step: int
    """Optimizer steps done with the iteration; the checkpoint's, if `at_start`."""
    resumed_at: int | None
    """The step that this start went on from; None where it is the first."""
    equal_up_to: int
    """The newest step before it of which all was equal."""
    expected: str = ""
    """What it was without interruption, where that can be shown."""
    found: str = ""
    others: int = 0
    """How many more tensors differ at that moment."""
    generators: tuple[str, ...] = ()
    """Whose global random generators differed when the iteration began."""


@dataclass(frozen=True)
class Comparison:
    """Two recordings of one run, compared."""

    steps: int
    """Different steps of which all that was observed is equal."""
    repeated: int
    """Steps that were lost by kills and done again."""
    difference: Difference | None


def compare(reference: Recording, other: Recording, *, every_rank: bool = True) -> Comparison:
    """Compare all that was observed in `other`, what it lost and did again included, with the reference.

    Args:
        reference: the run that nothing interrupted.
        other: another one of the same script.
        every_rank: else what all ranks have in common (settings and tensors) is compared, on rank 0 alone: for another
            number of ranks.
    """
    known = {(row.at, row.rank): row for row in reference.rows()}
    by_step = {row.step: row for row in reference.rows() if row.rank == 0 and row.values.get("tensors")}
    by_step |= {start.begun.step: start.begun for start in reference.all() if start.begun.rank == 0}
    equal: set[int] = set()
    newest = 0
    for row in _moments(other, every_rank):
        begun = row.values.get("loss") is None
        parting = _part(by_step.get(row.step) if begun else known.get((row.at, row.rank)), row, begun, every_rank)
        if parting is not None:
            return Comparison(len(equal), _repeated(other), _explain(other, parting, newest))
        if begun or row.values.get("tensors"):
            newest = row.step
        if not begun and row.values.get("settings") is not None:
            equal.add(row.step)
    return Comparison(len(equal), _repeated(other), None)


def parted(recording: Recording) -> str | None:
    """The first of the model's parameters that two ranks do not have in common after the same iteration, if any."""
    for ranks in recording.starts.values():
        first: dict[tuple[int, int], dict[str, str]] = {}
        rows = [row for start in ranks.values() for row in start.rows if row.values.get("tensors")]
        for row in sorted(rows, key=lambda row: (row.at, row.rank)):
            own = row.parts("tensors")
            known = first.setdefault(row.at, own)
            names: Sequence[str] = ranks[row.rank].facts["parameters"]
            for name in names:
                if own.get(name) != known.get(name):
                    return name
    return None


def _moments(recording: Recording, every_rank: bool) -> Iterator[Row]:
    """The rows in the order of time, before those of each start what it began with."""
    for ranks in recording.starts.values():
        if 0 in ranks:
            yield ranks[0].begun
        rows = [row for start in ranks.values() for row in start.rows if every_rank or row.rank == 0]
        yield from sorted(rows, key=lambda row: (row.at, row.rank))


@dataclass(frozen=True)
class _Parting:
    """A row that differs from what was expected, and in what."""

    row: Row
    what: str
    name: str = ""
    expected: str = ""
    found: str = ""
    others: int = 0
    generators: tuple[str, ...] = ()


def _part(expected: Row | None, found: Row, begun: bool, every_rank: bool) -> _Parting | None:
    if expected is None:
        # Of a step at which the reference looked at no tensors nothing can be said; but no iteration may be new.
        return None if begun or not every_rank else _Parting(found, "samples", "", "no such iteration", "one")
    for what in OBSERVED if every_rank else ("settings", "tensors"):
        old, new = expected.values.get(what), found.values.get(what)
        if old is None or new is None or old == new or (begun and what == "settings"):
            continue  # before a first step, a scheduler may be about to set its settings
        return _Parting(found, what, *_name(what, expected, found), _generators(expected, found))
    return None


def _name(what: str, expected: Row, found: Row) -> tuple[str, str, str, int]:
    """The first part that differs, what it was and is, and how many more differ."""
    old, new = expected.values[what], found.values[what]
    if what in ("gradients", "tensors"):
        before, now = expected.parts(what), found.parts(what)
        names = [name for name in (*now, *before) if before.get(name) != now.get(name)]
        return names[0] if names else "their order", "", "", len({*names}) - 1
    if what == "settings":
        pairs = _flat(old), _flat(new)
        names = [name for name in pairs[1] if pairs[0].get(name) != pairs[1][name]] or ["param_groups"]
        return names[0], pairs[0].get(names[0], ""), pairs[1].get(names[0], ""), len(names) - 1
    if what == "loss":
        return "", repr(float.fromhex(old)), repr(float.fromhex(new)), 0
    return "", "", "", 0


def _flat(groups: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Settings by name; of a sole group by their own names alone."""
    if len(groups) == 1:
        return dict(groups[0])
    return {f"{key} of group {number}": value for number, group in enumerate(groups) for key, value in group.items()}


def _generators(expected: Row, found: Row) -> tuple[str, ...]:
    old, new = expected.values.get("generators") or {}, found.values.get("generators") or {}
    return tuple(whose for whose in new if old.get(whose) != new[whose])


def _explain(other: Recording, parting: _Parting, equal_up_to: int) -> Difference:
    row = parting.row
    begun = other.starts[row.generation][row.rank].begun
    return Difference(
        what=parting.what,
        name=parting.name,
        at_start=row is begun,
        generation=row.generation,
        rank=row.rank,
        epoch=row.epoch,
        iteration=row.iteration,
        step=row.step,
        resumed_at=begun.step if begun.epoch else None,
        equal_up_to=equal_up_to,
        expected=parting.expected,
        found=parting.found,
        others=parting.others,
        generators=parting.generators,
    )


def _repeated(recording: Recording) -> int:
    steps = [row.step for row in recording.rows() if row.rank == 0 and row.values.get("settings") is not None]
    return len(steps) - len({*steps})


@dataclass(frozen=True)
class EndDifference:
    """A value in the last checkpoint that differs."""

    path: str
    """As in `statable.scheduler.last_epoch`."""
    expected: str
    found: str


def compare_states(expected: Any, found: Any, path: str = "") -> Iterator[EndDifference]:
    """What differs between two checkpoints' contents, in order; tensors and numbers by their bits."""
    if type(expected) is not type(found):
        yield EndDifference(path, _shown(expected), _shown(found))
    elif isinstance(expected, Mapping):
        for key in (*expected, *(key for key in found if key not in expected)):
            where = f"{path}.{key}" if path else str(key)
            if key not in expected or key not in found:
                yield EndDifference(where, *("nothing" if key not in one else "something" for one in (expected, found)))
            else:
                yield from compare_states(expected[key], found[key], where)
    elif isinstance(expected, list | tuple):
        if len(expected) != len(found):
            yield EndDifference(path, f"{len(expected)} entries", f"{len(found)} entries")
            return
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from compare_states(one, other, f"{path}[{index}]")
    elif hasattr(expected, "untyped_storage"):
        yield from _compare_tensors(expected, found, path)
    elif repr(expected) != repr(found):
        yield EndDifference(path, _shown(expected), _shown(found))


def _compare_tensors(expected: Any, found: Any, path: str) -> Iterator[EndDifference]:
    from minetorch.prove.digests import of_tensor  # imports torch

    if of_tensor(expected) == of_tensor(found) and _same_bits(expected, found):
        return
    if expected.shape != found.shape or expected.dtype != found.dtype:
        kinds = (f"{value.dtype} of {tuple(value.shape)}" for value in (expected, found))
        yield EndDifference(path, *kinds)
    elif expected.numel() == 1:
        yield EndDifference(path, repr(expected.item()), repr(found.item()))
    else:
        yield EndDifference(path, "", f"{relative_difference(expected, found):.1e} away")


def _same_bits(expected: Any, found: Any) -> bool:
    import torch

    plain = [value.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for value in (expected, found)]
    return torch.equal(*plain)


def relative_difference(expected: Any, found: Any) -> float:
    """The greatest difference of two tensors' entries, as a part of the greatest entry."""
    scale = float(expected.double().abs().max()) or 1.0
    return float((expected.double() - found.double()).abs().max()) / scale


def greatest_difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """The greatest `relative_difference` of the floating-point tensors of two models' states."""
    pairs: Iterable[tuple[Any, Any]] = ((expected[name], found[name]) for name in expected if name in found)
    both = [
        (one, other) for one, other in pairs if one.is_floating_point() and one.numel() and one.shape == other.shape
    ]
    return max((relative_difference(one, other) for one, other in both), default=0.0)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__}"
