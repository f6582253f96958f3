"""`trival=True`: a trial of the whole script, with a few iterations in each pass over the data."""

from __future__ import annotations

from itertools import islice

from minetorch.data import Epoch
from minetorch.options.settings import Settings

TRIVIAL_ITERATIONS = 10
"""Iterations in a pass over the data with `trival=True`."""


def trial_length(iterations: int | None, settings: Settings, done: int = 0) -> int | None:
    """The number of iterations that remain after `done`, limited by `trival`; None if it is not known."""
    if iterations is None or not settings.trival:
        return iterations
    return min(iterations, max(0, TRIVIAL_ITERATIONS - done))


def limited(epoch: Epoch, settings: Settings, done: int = 0) -> Epoch:
    """The epoch or, with `trival`, its first iterations. `done` of them were done before."""
    if not settings.trival:
        return epoch
    batches = islice(epoch.batches, max(0, TRIVIAL_ITERATIONS - done))
    return epoch._replace(iterations=trial_length(epoch.iterations, settings, done), batches=batches)
