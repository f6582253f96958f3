"""Warns of a loss that is NaN or infinite, where losses are looked at anyway."""

from __future__ import annotations

import logging
import math


class LossWatch:
    """Says once in a start of the run that its loss is not finite. `NaNGuard` also stops, and finds out why.

    To look at a loss makes a GPU wait. So this fetches none: it is told of the bar's, and of the sums that are formed
    for each checkpoint and at the end of each epoch. A sum stays NaN or infinite from the first such loss on.
    """

    def __init__(self, logger: logging.Logger) -> None:
        """Warn with `logger`."""
        self._logger = logger
        self._said: str | None = None

    def look(self, loss: float, *, step: int, epoch: int, which: str = "training") -> None:
        """Look at a loss, or at a sum of losses.

        Args:
            loss: its value.
            step: optimizer steps done.
            epoch: the epoch under way.
            which: "training" or "validation". Once the training's is not finite, the validation's is no news.
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
