"""`trival=True`: a trial of the whole script, with a few iterations for each pass over the data."""

from __future__ import annotations

from itertools import islice

from minetorch.data import Epoch
from minetorch.options.settings import Settings

TRIVIAL_ITERATIONS = 10
"""Iterations of a pass over the data under `trival=True`."""


def trial_length(iterations: int | None, settings: Settings, done: int = 0) -> int | None:
    """How many iterations there will be of so many, `done` of which were done before; None where it is not known."""
    if iterations is None or not settings.trival:
        return iterations
    return min(iterations, max(0, TRIVIAL_ITERATIONS - done))


def limited(epoch: Epoch, settings: Settings, done: int = 0) -> Epoch:
    """The epoch, or its beginning under `trival`, of which `done` iterations were done before."""
    if not settings.trival:
        return epoch
    batches = islice(epoch.batches, max(0, TRIVIAL_ITERATIONS - done))
    return epoch._replace(iterations=trial_length(epoch.iterations, settings, done), batches=batches)
