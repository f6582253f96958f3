"""What several runs have in common and what not. Pure, but for `draw`, which needs Matplotlib."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minetorch.errors import ConfigurationError
from minetorch.views.former_settings import present_names
from minetorch.views.names import labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minetorch.views.record import Graph, Record

PREFERRED = "loss"
"""The graph to draw where none is asked for, if any run has it."""


@dataclass(frozen=True)
class Row:
    """One fact about each run."""

    name: str
    values: tuple[Any, ...]
    """In the order of the runs; None where a run has no such fact, or it is not known."""

    @property
    def differs(self) -> bool:
        """Whether it is not the same of all."""
        return len(set(map(repr, self.values))) > 1  # so that NaN is NaN, and 1 is not True


@dataclass(frozen=True)
class Comparison:
    """Several runs beside each other."""

    labels: list[str]
    records: Sequence[Record]
    rows: list[Row]
    """Every fact that any run has, in one order."""

    @classmethod
    def of(cls, records: Sequence[Record]) -> Comparison:
        """Of runs in the order given."""
        return cls(labels([record.url for record in records]), records, rows([facts(record) for record in records]))

    @property
    def differing(self) -> list[Row]:
        """The facts in which the runs differ."""
        return [row for row in self.rows if row.differs]

    def choose(self, graph: str | None) -> str | None:
        """The graph to draw: as asked, else the loss, else what most runs have; None where no run has drawn.

        Raises:
            ConfigurationError: a run has not the graph that is asked for.
        """
        if graph is not None:
            for record in self.records:
                record.graph(graph)
            return graph
        count = Counter(name for record in self.records for name in record.drawn.graphs)
        return PREFERRED if PREFERRED in count else max(count, key=lambda name: count[name], default=None)

    def graphs(self, graph: str) -> dict[str, Graph]:
        """The graph of each run that has it, by the run's label."""
        pairs = zip(self.labels, self.records, strict=True)
        return {label: record.drawn.graphs[graph] for label, record in pairs if graph in record.drawn.graphs}


def facts(record: Record) -> dict[str, Any]:
    """What is worth comparing of a run, by names that sort into groups as they come."""
    newest, best = record.newest, record.best
    found: dict[str, Any] = {"state": record.state}
    if newest is not None:
        found |= {"epoch": newest.epoch, "step": newest.step, "world_size": newest.world_size}
        found["starts"] = newest.generation
    if best is not None:
        found["best.epoch"] = best.epoch
        found |= {f"best.{name}": value for name, value in best.metrics.items()}
    if newest is not None:
        found |= {f"latest.{name}": value for name, value in newest.metrics.items()}
        found |= {f"settings.{name}": value for name, value in present_names(newest.settings).items()}
        found |= {f"code.{name}": value for name, value in newest.code.items()}
        found |= {f"versions.{name}": value for name, value in newest.versions.items()}
    return found


def rows(tables: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Every fact that any table has, in the order of the first table, the others' own after their group."""
    names = list(dict.fromkeys(name for table in tables for name in table))
    groups = list(dict.fromkeys(_group(name) for name in names))
    ordered = sorted(names, key=lambda name: groups.index(_group(name)))
    return [Row(name, tuple(table.get(name) for table in tables)) for name in ordered]


def _group(name: str) -> str:
    group, dot, _ = name.partition(".")
    return group if dot else ""


def draw(graph: str, graphs: Mapping[str, Graph]) -> bytes:
    """One picture of all runs' curves, as the drawers paint them: a PNG.

    Raises:
        ConfigurationError: x does not count the same on all of them.
    """
    from minetorch.drawers.picture import render

    x_names = {found.x_name for found in graphs.values()}
    if len(x_names) > 1:
        counted = ", ".join(f"{found.x_name} on that of {label}" for label, found in graphs.items())
        raise ConfigurationError(f"the graphs {graph!r} cannot be drawn on one x axis, which counts {counted}")
    several = any(len(found.curves) > 1 for found in graphs.values())
    curves = {
        f"{label} {name}" if several else label: points
        for label, found in graphs.items()
        for name, points in found.curves.items()
    }
    return render(graph, curves, x_name=x_names.pop(), code=f"{len(graphs)} runs")
