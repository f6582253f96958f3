"""What a run tells whoever shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minetorch.console.figures import Figures


class View(Protocol):
    """A place where a run is shown. Any thread may call; a call costs no more than handing its arguments over."""

    def here(self) -> None:
        """From now on show in the cell that is running."""

    def progress(self, figures: Figures) -> None:
        """How far a pass over the data is."""

    def end_pass(self) -> None:
        """The pass is over, or cut short."""

    def line(self, level: str, text: str) -> None:
        """A line of the log, and its level as `logging` names it."""

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """What an epoch came to."""

    def graph(self, name: str, png: bytes) -> None:
        """A graph as it is now."""

    def close(self) -> None:
        """Show the last state. Later calls may follow and begin anew."""
