"""The few cells that stand for the matrix in the test suite: pure."""

from __future__ import annotations

from tests.faults.cells import Cell, possible


def chosen() -> list[Cell]:
    """Every victim, phase and kind of outcome at least once, and each kind of fault."""
    return [Cell.parse(text) for text in _CHOSEN]


_CHOSEN = (
    "SIGKILL / rendezvous host / rendezvous",  # the longest first
    "cut link / agent / mid-epoch",
    "GIL held / rank 0 / upload",
    "SIGSTOP / rank 1 / process group",
    "full disk / rank 0 / commit",
    "SIGKILL / rank 0 / commit",
    "exception / rank 1 / import",
    "sys.exit / rank 1 / upload",
    "SIGSEGV / rank 0 / exit",
    "SIGABRT / loader worker / staging",
    "collective skipped / rank 1 / validation",
    "SIGTERM ignored / rank 0 / first step",
    "out of memory / loader worker / mid-epoch",
    "S3 503 / rank 0 / commit",
    "SIGKILL / fork server / after commit",
    "SIGKILL / launcher / upload",
)


def missing() -> list[str]:
    """Victims and phases that the chosen do not show; none."""
    cells = chosen()
    return [
        word
        for name in ("victim", "phase")
        for word in {getattr(cell, name) for cell in possible()}
        if word not in {getattr(cell, name) for cell in cells}
    ]
