"""Warns of a loss that is NaN or infinite, where other code reads a loss anyway."""

from __future__ import annotations

import logging
import math


class LossWatch:
    """Logs once per start of the run that the loss is not finite. `NaNGuard` also stops, and finds the cause.

    To read a loss makes a GPU wait. So this class reads none: it gets the losses that the progress bar shows, and the
    sums that are formed for each checkpoint and at the end of each epoch. A sum stays NaN or infinite from the first
    such loss on.
    """

    def __init__(self, logger: logging.Logger) -> None:
        """Warn with `logger`."""
        self._logger = logger
        self._said: str | None = None

    def look(self, loss: float, *, step: int, epoch: int, which: str = "training") -> None:
        """Check a loss, or a sum of losses, and warn if it is not finite.

        Args:
            loss: the value.
            step: the number of optimizer steps so far.
            epoch: the current epoch.
            which: "training" or "validation". After a warning about the training loss, there is none about the other.
        """
        if math.isfinite(loss) or self._said in (which, "training"):
            return
        self._said = which
        self._logger.warning(
            "The %s loss is %s: seen at step %d, in epoch %d. This is logged once, and training continues; "
            "plugins=[NaNGuard()] stops before such a step, and names the samples and the layer.",
            which,
            "NaN" if math.isnan(loss) else "infinite",
            step,
            epoch,
        )
