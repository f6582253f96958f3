"""What a proof came to, and how it is said. Pure."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from minetorch.prove.comparing import Comparison, Difference, EndDifference
from minetorch.prove.orders import What

_WIDTH = 96
_ROUNDING = 1e-3
"""Relative differences of weights to which sums of float32 in another order may well have grown."""


@dataclass(frozen=True)
class Mended:
    """A kill, and the start after it."""

    step: int
    """After which the signal was sent."""
    what: What
    rank: int
    """To whom, or of "all" by whom."""
    reached: int
    """The step that the run had come to when it ended."""
    went_on_from: int
    """The step of the checkpoint that the next start took."""
    ranks_before: int
    ranks_after: int


@dataclass(frozen=True)
class Samples:
    """The samples of both runs, compared."""

    epochs: int
    count: int
    problems: Sequence[str]
    """What is wrong with those of the killed run."""
    first_other_epoch: int | None
    """The first epoch in which they came in another order than without interruption."""

    @property
    def is_exact(self) -> bool:
        """Whether each came once, and all in the same order."""
        return not self.problems and self.first_other_epoch is None


@dataclass(frozen=True)
class End:
    """The last checkpoints of both runs, compared."""

    tensors: int
    differences: Sequence[EndDifference]
    figures: Sequence[str]
    """What differs, too, but is none of the training's own state."""
    relative: float
    """The greatest difference of the model's tensors, as a part of the greatest entry."""


@dataclass(frozen=True)
class RunProof:
    """What was found of one Trainer's run."""

    name: str
    """Its `code`."""
    comparison: Comparison | None
    """None where equal bits are not to be expected: on another number of ranks."""
    deterministic: bool | None
    """Whether a second uninterrupted run was equal; None where none was needed."""
    cause: tuple[str, str] | None
    samples: Samples
    end: End
    to_the_bit: bool
    mended: Sequence[Mended]

    @property
    def is_exact(self) -> bool:
        """Whether the killed run is all that can be expected of it."""
        if not self.to_the_bit:
            return self.samples.is_exact
        assert self.comparison is not None
        return self.samples.is_exact and self.comparison.difference is None and not self.end.differences


@dataclass(frozen=True)
class Verdict:
    """What a proof came to."""

    script: str
    nproc: int
    then_nproc: int | None
    seed: int
    kills: int
    """How often it was killed."""
    asked: int
    """How often it was to be: a run may end before."""
    runs: Sequence[RunProof]

    @property
    def is_exact(self) -> bool:
        """Whether every run is."""
        return all(run.is_exact for run in self.runs)

    def facts(self) -> dict[str, Any]:
        """All of it, for JSON."""
        facts = dataclasses.asdict(self)
        for run, own in zip(self.runs, facts["runs"], strict=True):
            own["exact"] = run.is_exact
            own["cause"] = None if run.cause is None else {"kind": run.cause[0], "advice": run.cause[1]}
        return {"verdict": "exact" if self.is_exact else "differs", **facts}

    def text(self) -> str:
        """For people: what was done, what was compared, and the verdict."""
        return "\n".join([*(line for run in self.runs for line in self._of_run(run)), "", *self._last_words()])

    def _of_run(self, run: RunProof) -> Iterator[str]:
        if len(self.runs) > 1:
            yield f"{run.name}:"
        yield from _kills(run.mended)
        yield _line("samples", _samples(run.samples))
        if run.comparison is not None:
            yield _line("steps", _steps(run.comparison))
        yield _line("end", _end(run))
        if run.end.figures and run.is_exact and run.to_the_bit:
            yield _line("", f"(not the training's own, and different: {', '.join(run.end.figures)})")

    def _last_words(self) -> Iterator[str]:
        times = {1: "once", 2: "twice"}.get(self.kills, f"{self.kills} times")
        if self.is_exact:
            moved = (
                f", continued on {ranks_text(self.then_nproc or 1)}"
                if self.then_nproc not in (None, self.nproc)
                else ""
            )
            if all(run.to_the_bit for run in self.runs):
                yield f"EXACT: killed {times}{moved}, and not one bit differs."
            else:
                yield f"EXACT TO THE SAMPLE: killed {times}{moved}; every sample in its turn, none lost, none twice."
            return
        for run in self.runs:
            if not run.is_exact:
                name = f" {run.name}:" if len(self.runs) > 1 else ":"
                yield from _wrapped(f"DIFFERS{name} {_where(run)}")
                yield from _reasons(run)


def ranks_text(count: int) -> str:
    """`1 rank`, `2 ranks`."""
    return _counted(count, "rank")


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _line(head: str, text: str) -> str:
    return f"{head:<15}{text}".rstrip()


def _kills(mended: Sequence[Mended]) -> Iterator[str]:
    rows = [(f"step {one.step:,}", _signal(one), _going_on(one)) for one in mended]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    for step, how, on in rows:
        yield _line("", f"{step:<{widths[0]}}  {how:<{widths[1]}}  {on}")


def _signal(one: Mended) -> str:
    whom = "all ranks" if one.what == "all" and one.ranks_before > 1 else f"rank {one.rank}"
    return f"{'SIGTERM' if one.what == 'notice' else 'SIGKILL'} to {whom}"


def _going_on(one: Mended) -> str:
    lost = one.reached - one.went_on_from
    again = f", {_counted(lost, 'step')} done again" if lost else ", none lost"
    moved = f" on {ranks_text(one.ranks_after)}" if one.ranks_after != one.ranks_before else ""
    return f"went on from {one.went_on_from:,}{moved}{again}"


def _samples(samples: Samples) -> str:
    if samples.problems:
        return " ".join(samples.problems)
    if samples.first_other_epoch is not None:
        return f"others, or in another order, from epoch {samples.first_other_epoch} on"
    return f"{samples.count:,} in {_counted(samples.epochs, 'epoch')}: each in its turn, none lost, none twice"


def _steps(comparison: Comparison) -> str:
    if comparison.difference is None:
        return f"all {comparison.steps:,} equal: data, loss, gradients, settings, and every tensor after each"
    equal = comparison.difference.equal_up_to
    return f"equal up to step {equal:,}" if equal else "not one is equal"


def _end(run: RunProof) -> str:
    end = run.end
    if not end.differences:
        return f"{end.tensors:,} tensors of the last checkpoints are equal, bit for bit"
    if not run.to_the_bit:
        more = "" if end.relative < _ROUNDING else "; batches, dropout or BatchNorm depend on the number of ranks"
        return f"the weights are up to {end.relative:.1e} away, relative to each tensor's greatest{more}"
    first = end.differences[0]
    shown = f" ({first.expected} is {first.found})" if first.expected else f" ({first.found})"
    differ = "differs" if len(end.differences) == 1 else "differ"
    values = _counted(len(end.differences), "value")
    return f"{values} of the last checkpoints {differ}; the first: {first.path}{shown}"


def _where(run: RunProof) -> str:
    difference = run.comparison.difference if run.comparison is not None else None
    if difference is None:
        if not run.samples.is_exact:
            return "the samples are not those of the uninterrupted run."
        return (
            "each step is equal, but not the last checkpoint: what differs there is changed after the last step, or "
            "kept in `statable` or a plugin and not by the training alone."
        )
    return f"{_moment(difference)}, {_thing(difference)}."


def _moment(difference: Difference) -> str:
    if difference.at_start:
        if difference.resumed_at is None:
            return "before the first step"
        return f"as soon as step {difference.step:,} was loaded"
    step = f"first at step {difference.step:,} (epoch {difference.epoch}, iteration {difference.iteration})"
    if difference.equal_up_to < difference.step - 1 and difference.what in ("tensors", "gradients"):
        step = f"first in steps {difference.equal_up_to + 1:,} to {difference.step:,}"
    if difference.resumed_at is None:
        return f"{step}, before any kill"
    gone = difference.step - difference.resumed_at
    after = "right after" if gone <= 1 else f"{_counted(gone, 'step')} after"
    return f"{step}, {after} going on from step {difference.resumed_at:,}"


def _thing(difference: Difference) -> str:
    values = f": {difference.expected} became {difference.found}" if difference.expected else ""
    more = f" and {difference.others} more" if difference.others else ""
    match difference.what:
        case "tensors":
            return f"in {difference.name}{more}"
        case "gradients":
            return f"in the gradient of {difference.name}{more}"
        case "settings":
            return f"in the optimizer's {difference.name}{values}"
        case "samples":
            return f"in the samples of rank {difference.rank}{values}"
        case "data":
            return f"in the data of rank {difference.rank}, of the same samples"
        case _:
            return f"in the {difference.what} of rank {difference.rank}{values}"


def _reasons(run: RunProof) -> Iterator[str]:
    if run.deterministic is not None:
        yield from _wrapped(
            "A second uninterrupted run was equal: the script is deterministic, but loses something by a restart."
            if run.deterministic
            else "Two runs without a kill differ, too: the script is not deterministic."
        )
    if run.cause is not None:
        yield from _wrapped(f"Likely cause: {run.cause[0]}. {run.cause[1]}")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
