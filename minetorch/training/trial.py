"""`trival=True`: a trial of the whole script, with a few iterations for each pass over the data."""

from __future__ import annotations

from itertools import islice

from minetorch.data import Epoch
from minetorch.settings import Settings

TRIVIAL_ITERATIONS = 10
"""Iterations of a pass over the data under `trival=True`."""


def limited(epoch: Epoch, settings: Settings, done: int = 0) -> Epoch:
    """The epoch, or its beginning under `trival`, of which `done` iterations were done before."""
    if not settings.trival:
        return epoch
    allowed = max(0, TRIVIAL_ITERATIONS - done)
    left = None if epoch.iterations is None else min(epoch.iterations, allowed)
    return epoch._replace(iterations=left, batches=islice(epoch.batches, allowed))
