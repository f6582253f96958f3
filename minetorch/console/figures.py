"""What there is to say of a pass over the data at one moment, and how to say it in so many columns. Pure."""

from __future__ import annotations

from collections.abc import Collection
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
        parts = [f"loss {self.loss:.4g}"]
        if self.rate is not None:
            parts.append(f"{rate_text(self.rate)} {self.rate_unit}/s")
        if self.waiting is not None:
            parts.append(f"data wait {self.waiting:.0%}")
        if self.memory is not None:
            parts.append(f"{self.memory / 2**30:.1f} GiB")
        if self.left_s is not None:
            parts.append(f"{clock_time(self.left_s)} left")
        if self.run_left_s is not None:
            parts.append(f"run {clock_time(self.run_left_s)}")
        return ", ".join(parts)

    def details_within(self, columns: int) -> str:
        """As many figures as fit into so many columns, in fewer words, the most wanted first to stay."""
        if len(self.details()) <= columns:
            return self.details()
        # From the end of this order on they go: what is there changes least from one look to the next.
        wanted = ("loss", "left", "rate", "data", "run", "memory")
        for count in range(len(wanted), 0, -1):
            shown = self._short(wanted[:count])
            if len(shown) <= columns:
                return shown
        return ""

    def _short(self, shown: Collection[str]) -> str:
        parts = [f"loss {self.loss:.4g}"]
        if self.rate is not None and "rate" in shown:
            parts.append(f"{rate_text(self.rate)}/s")
        if self.waiting is not None and "data" in shown:
            parts.append(f"data {self.waiting:.0%}")
        if self.memory is not None and "memory" in shown:
            parts.append(f"{self.memory / 2**30:.1f}G")
        if self.left_s is not None and "left" in shown:
            run = "" if self.run_left_s is None or "run" not in shown else f"/{clock_time(self.run_left_s)}"
            parts.append(f"{clock_time(self.left_s)}{run} left")
        return " ".join(parts)


def four_digits(value: float) -> str:
    """A metric with four significant digits, zeros at the end included: 0.5000, 633.3, 1797."""
    return f"{value:#.4g}".removesuffix(".")


def rate_text(rate: float) -> str:
    """Samples per second: 0.4, 12,346."""
    return f"{rate:,.{0 if rate >= 10 else 1}f}"


def time_text(seconds: float) -> str:
    """Seconds as 4.2 s, and from a minute on as `clock_time`."""
    return f"{seconds:.1f} s" if seconds < 59.95 else clock_time(seconds)


def clock_time(seconds: float) -> str:
    """Seconds as 0:09, 12:34 or 1:02:03, and from two days on in days: 3d 04h."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d {hours % 24:02}h"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
