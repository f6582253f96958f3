"""What there is to say of a pass over the data at one moment, and how to say it in so many columns. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """How far a pass over the data is."""

    title: str
    """Such as "Epoch 3/10"."""
    done: int
    """Iterations that are done, those before a resumption included."""
    total: int | None
    """Iterations of the whole pass; None where that is unknown."""
    loss: float
    """Of rank 0's last batch."""
    rate: float | None = None
    """Samples (or batches) a second over all ranks; None before it can be known."""
    rate_unit: str = "samples"
    waiting: float | None = None
    """Share of the time, 0 to 1, that rank 0 has waited for its loader; None before it can be known."""
    memory: int | None = None
    """Bytes that rank 0 has in use: on its GPU, or else resident; None where that cannot be known."""
    left_s: float | None = None
    """Seconds until the pass ends; None before it can be known."""
    run_left_s: float | None = None
    """Seconds until the last epoch ends; None before it can be known, in the last epoch, and in a run without end."""

    def details(self) -> str:
        """All figures in words."""
        return ", ".join(self._pieces(wide=True))

    def details_within(self, columns: int) -> str:
        """As many figures as fit into so many columns, the most wanted first to stay."""
        if len(self.details()) <= columns:
            return self.details()
        pieces = self._pieces(wide=False)
        # From the end of this order on they go: what is there changes least from one look to the next.
        wanted = ("loss", "left", "rate", "data", "run", "memory")
        for count in range(len(wanted), 0, -1):
            shown = " ".join(piece for piece, name in zip(pieces, self._names(), strict=True) if name in wanted[:count])
            if len(shown) <= columns:
                return shown
        return ""

    def _names(self) -> list[str]:
        values = {
            "loss": self.loss,
            "rate": self.rate,
            "data": self.waiting,
            "memory": self.memory,
            "left": self.left_s,
            "run": self.run_left_s,
        }
        return [name for name, value in values.items() if value is not None]

    def _pieces(self, *, wide: bool) -> list[str]:
        """In the order of `_names`."""
        pieces = [f"loss {self.loss:.4g}"]
        if self.rate is not None:
            unit = f" {self.rate_unit}/s" if wide else "/s"
            pieces.append(f"{self.rate:,.{0 if self.rate >= 10 else 1}f}{unit}")
        if self.waiting is not None:
            pieces.append(f"data{' wait' if wide else ''} {self.waiting:.0%}")
        if self.memory is not None:
            pieces.append(f"{self.memory / 2**30:.1f}{' GiB' if wide else 'G'}")
        if self.left_s is not None:
            pieces.append(f"{clock_time(self.left_s)} left")
        if self.run_left_s is not None:
            pieces.append(f"run {clock_time(self.run_left_s)}")
        return pieces


def clock_time(seconds: float) -> str:
    """Seconds as 0:09, 12:34 or 1:02:03, and from two days on in days: 3d 04h."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d {hours % 24:02}h"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
