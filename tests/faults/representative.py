"""The few cells that stand for the matrix in the test suite: pure."""

from __future__ import annotations

from tests.faults.cells import Cell, possible

_SLOW = ("agent", "rendezvous host")
"""To notice that a machine is gone takes 12 s and more; each of these is tried once."""


def chosen() -> list[Cell]:
    """Every fault, victim and phase at least once, and every pair of victim and kind of outcome that is cheap."""
    return [Cell.parse(text) for text in _CHOSEN]


_CHOSEN = (
    "SIGKILL / rank 0 / commit",
    "exception / rank 1 / import",
    "sys.exit / rank 1 / upload",
    "SIGSEGV / rank 0 / exit",
    "SIGABRT / loader worker / staging",
    "SIGSTOP / rank 1 / process group",
    "GIL held / rank 0 / upload",
    "collective skipped / rank 1 / validation",
    "SIGTERM ignored / rank 0 / first step",
    "full disk / rank 0 / upload",
    "out of memory / loader worker / mid-epoch",
    "clock set back / launcher / staging",
    "S3 503 / rank 0 / commit",
    "S3 truncated / rank 0 / upload",
    "SIGKILL / fork server / after commit",
    "SIGKILL / launcher / upload",
    "SIGKILL / rendezvous host / rendezvous",
    "cut link / agent / mid-epoch",
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
