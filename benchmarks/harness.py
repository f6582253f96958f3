"""What all benchmarks share: contenders by turns, medians and spread, rows of one table, one command line.

A benchmark is a module with a function that yields a `Row` for each figure, and a last line `main(measure, __doc__)`:

    def measure(options: Options) -> Iterator[Row]:
        times = interleave({"minetorch": ours, "torchrun": theirs}, options.rounds)
        yield Row.of("launch", "2 workers, first all-reduce", "s", times, target=Target("torchrun", 0.65))

Figures are compared within a round, whose contenders ran one right after the other: what the machine does beside them
slows all of a round alike.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from minetorch_doctor.software import count_names
from minetorch_launch.devices import find_driver

__all__ = [
    "OURS",
    "Figure",
    "Options",
    "Row",
    "Target",
    "end_on_sigterm",
    "interleave",
    "load",
    "main",
    "markdown",
    "progress",
    "save",
]

OURS = "minetorch"
FAILED = math.nan
"""What a contender returns that did not come to its end."""


def interleave(
    contenders: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Run all contenders by turns, A B A B, and return what each call returned, by contender and round.

    Args:
        contenders: by name; each measures itself once, in whatever unit, and returns NaN where it failed.
        rounds: how often each is asked.
        warm_up: one more round first that does not count.
    """
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-int(warm_up), rounds):
        for name, contender in contenders.items():
            figure = contender()
            if number >= 0:
                figures[name].append(figure)
    return figures


@dataclass(frozen=True)
class Figure:
    """What one contender took in all rounds: the median, the lowest and the highest of those that did not fail."""

    median: float
    low: float
    high: float
    rounds: int
    failed: int = 0

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Of one value a round, NaN for a failure."""
        good = [value for value in values if not math.isnan(value)]
        if not good:
            return cls(FAILED, FAILED, FAILED, len(values), len(values))
        return cls(statistics.median(good), min(good), max(good), len(values), len(values) - len(good))

    @classmethod
    def ratio(cls, ours: Sequence[float], theirs: Sequence[float]) -> Figure:
        """Of the quotients of each round."""
        pairs = zip(ours, theirs, strict=True)
        return cls.of([a / b if b else FAILED for a, b in pairs])


@dataclass(frozen=True)
class Target:
    """What is aimed at: at most so many times what a peer takes."""

    peer: str
    at_most: float


@dataclass(frozen=True)
class Row:
    """One thing that was measured, of Minetorch and its peers. Less is better."""

    benchmark: str
    what: str
    unit: str
    """One of `UNITS`."""

    figures: dict[str, Figure] = field(default_factory=dict)
    """By contender; empty where it could not be measured, of which `note` says why."""

    ratios: dict[str, Figure] = field(default_factory=dict)
    """Minetorch's figure divided by the peer's, by peer."""

    target: Target | None = None
    floor: float | None = None
    """What physics leaves at least, in the same unit."""

    note: str = ""
    """What the floor is made of, why a target is missed, why there is no figure."""

    @classmethod
    def of(cls, benchmark: str, what: str, unit: str, values: Mapping[str, Sequence[float]], **more: Any) -> Row:
        """The row of what `interleave` returned, in which Minetorch is called `OURS`."""
        ours = values[OURS]
        return cls(
            benchmark,
            what,
            unit,
            {name: Figure.of(each) for name, each in values.items()},
            {name: Figure.ratio(ours, each) for name, each in values.items() if name != OURS},
            **more,
        )

    @property
    def verdict(self) -> str:
        """Whether the target is met: "met", "missed", "not measured", or nothing where there is none."""
        if self.target is None:
            return "" if self.figures else "not measured"
        ratio = self.ratios.get(self.target.peer)
        if ratio is None or math.isnan(ratio.median):
            return "not measured"
        return "met" if ratio.median <= self.target.at_most else "missed"


UNITS: dict[str, list[tuple[float, str]]] = {
    "s": [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")],
    "MiB": [(1024.0, "GiB"), (1.0, "MiB")],
    "MB/s": [(1.0, "MB/s")],
    "": [(1.0, "")],
}
"""By a row's unit: how many of it make one of what is written, the largest first."""


def written(value: float, unit: str) -> str:
    """Three digits and the unit that suits them."""
    if math.isnan(value):
        return "failed"
    if not value:
        return f"0 {unit}".strip()
    scale, name = next((each for each in UNITS[unit] if abs(value) >= each[0]), UNITS[unit][-1])
    scaled = value / scale
    digits = 0 if not unit and scaled == round(scaled) else max(0, 2 - math.floor(math.log10(abs(scaled))))
    return f"{scaled:,.{digits}f} {name}".strip()


def ratio_written(ratio: float) -> str:
    """Two digits after the point, or the first two that are not zeros."""
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.1g}" if ratio < 0.01 else f"{ratio:.2g}"


def markdown(rows: Iterable[Row]) -> str:
    """A table with a line for each row and peer."""
    lines = [
        "| what | Minetorch | beside | takes | ratio (lowest to highest) | target | | floor | times the floor |",
        "| --- | ---: | --- | ---: | --- | --- | --- | ---: | ---: |",
    ]
    notes: list[str] = []
    for row in rows:
        what = row.what
        if row.note:
            if row.note not in notes:
                notes.append(row.note)
            what += f" ({_letter(notes.index(row.note))})"
        lines += [f"| {' | '.join(cells)} |" for cells in _cells(row, what)]
    told = [f"({_letter(index)}) {note}" for index, note in enumerate(notes)]
    return "\n".join(lines) + "\n" + ("\n" + "  \n".join(told) + "\n" if told else "")


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"a{_letter(index - 26)}"


def _cells(row: Row, what: str) -> Iterator[list[str]]:
    ours = row.figures.get(OURS)
    peers = [name for name in row.figures if name != OURS] or ([row.target.peer] if row.target else [""])
    for peer in peers:
        figure, ratio = row.figures.get(peer), row.ratios.get(peer)
        aimed = row.target if row.target is not None and row.target.peer == peer else None
        yield [
            what,
            written(ours.median, row.unit) if ours else "unmeasured",
            peer,
            _with_failures(figure, row.unit) if figure else "",
            f"**{ratio_written(ratio.median)}** ({ratio_written(ratio.low)} to {ratio_written(ratio.high)})"
            if ratio is not None and not math.isnan(ratio.median)
            else "",
            f"≤ {aimed.at_most:.2f}" if aimed else "",
            row.verdict if aimed else "",
            written(row.floor, row.unit) if row.floor is not None else "",
            f"{ours.median / row.floor:.2f}" if ours and row.floor else "",
        ]


def _with_failures(figure: Figure, unit: str) -> str:
    told = written(figure.median, unit)
    return f"{told}, {figure.failed} of {figure.rounds} failed" if figure.failed else told


_LOAD_BEFORE = os.getloadavg()[1]
"""Before this process has added to it: what else the machine did in the last 5 minutes."""


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    from importlib.metadata import version

    driver = find_driver()
    gpus = f", {count_names(driver.gpus)}" if driver is not None and driver.gpus else ""
    model = platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "date": f"{date.today():%d %B %Y}",
        "cores": f"{len(os.sched_getaffinity(0))} cores of {model}{gpus}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "torch": version("torch"),
        "system": f"{platform.system()} {platform.release()}",
        "load": f"{_LOAD_BEFORE:.1f}",
    }


def save(path: Path, rows: Iterable[Row], **more: Any) -> None:
    """Write the machine and the rows as JSON, in which NaN stands as null."""
    content = {"machine": machine(), **more, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _nan(value: Any) -> Any:
    return FAILED if value is None else value


def load(path: Path) -> list[Row]:
    """The rows that `save` wrote."""

    def figures(found: dict[str, dict[str, Any]]) -> dict[str, Figure]:
        return {name: Figure(**{key: _nan(value) for key, value in each.items()}) for name, each in found.items()}

    rows = []
    for each in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        target = Target(**each.pop("target")) if each["target"] else each.pop("target")
        found, ratios = figures(each.pop("figures")), figures(each.pop("ratios"))
        rows.append(Row(**each, figures=found, ratios=ratios, target=target))
    return rows


@dataclass(frozen=True)
class Options:
    """What every benchmark's command line takes."""

    rounds: int
    quick: bool = False
    """As small as shows that it works; figures of no worth."""

    arguments: argparse.Namespace = field(default_factory=argparse.Namespace)
    """What this benchmark takes beside."""

    def at_most(self, rounds: int) -> Options:
        """The same with fewer rounds, for what takes long."""
        return replace(self, rounds=min(self.rounds, rounds))


def progress(text: str) -> None:
    """Say on stderr what is being done."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def make_parser(doc: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """The command line that all benchmarks have, to add to."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each contender (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="as small as shows that it works; figures of no worth")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    return parser


def end_on_sigterm() -> None:
    """Leave by an exception, so that what was started is ended, too. SIGINT is ignored by what runs in a background."""
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))


def main(measure: Callable[[Options], Iterable[Row]], parser: argparse.ArgumentParser | str | None) -> None:
    """Measure as the command line says, and print the table.

    Args:
        measure: yields the rows.
        parser: a benchmark's own from `make_parser`, or its text for one.
    """
    end_on_sigterm()
    arguments = (parser if isinstance(parser, argparse.ArgumentParser) else make_parser(parser)).parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    rows = []
    for row in measure(Options(rounds, arguments.quick, arguments)):
        ours = row.figures.get(OURS)
        ratios = ", ".join(f"{ratio_written(each.median)} of {name}" for name, each in row.ratios.items())
        figure = f"{written(ours.median, row.unit)}; {ratios or 'alone'}" if ours else row.note
        progress(f"{row.benchmark}: {row.what}: {figure}; {row.verdict}".removesuffix("; "))
        rows.append(row)
        if arguments.json is not None:
            save(arguments.json, rows)
    print(markdown(rows))
