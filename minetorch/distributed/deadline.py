"""The time when SLURM ends the job, for a script that runs without a launcher (`srun python train.py`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

AHEAD_S = 120.0
AHEAD_SHARE = 0.1
"""Seconds to save and stop before the job ends, and their largest share of the job's time; as in `minetorch-launch`."""


class JobEnd:
    """The end of this process's job, if it is known."""

    def __init__(self, end: float | None, start: float | None, clock: Callable[[], float] = time.time) -> None:
        """The times are in seconds of the Unix clock.

        Args:
            end: the end of the job; None if it is not known.
            start: the start of the job; None: now.
            clock: returns the Unix time in seconds.
        """
        whole = 0.0 if end is None else end - (clock() if start is None else start)
        self._stop_at = float("inf") if end is None else end - min(AHEAD_S, AHEAD_SHARE * max(0.0, whole))
        self._clock = clock
        self.is_known = self._stop_at < float("inf")
        """Whether the job has a known end."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], clock: Callable[[], float] = time.time) -> JobEnd:
        """Read SLURM_JOB_END_TIME and SLURM_JOB_START_TIME, which SLURM sets from 23.02 on.

        Under `minetorch-launch` (MINETORCH_ATTEMPT) the end is not known: the launcher sends a signal in time.
        """
        if "MINETORCH_ATTEMPT" in environ:
            return cls(None, None, clock)
        end, start = (
            float(text) if (text := environ.get(f"SLURM_JOB_{name}_TIME", "")).isdecimal() else None
            for name in ("END", "START")
        )
        return cls(end, start, clock)

    @property
    def is_near(self) -> bool:
        """Whether it is time to save and stop."""
        return self.is_known and self._clock() >= self._stop_at
