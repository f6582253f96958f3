"""Decides at which steps a run is killed, and how. Pure: the same seed, the same kills."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import cycle, pairwise

from minetorch.prove.orders import Kill, What

KINDS: dict[str, tuple[What, ...]] = {
    "one": ("all", "notice"),
    "many": ("rank", "all", "notice"),
    # A launcher's own restart cannot change the number of ranks, so that it comes last.
    "moving": ("all", "notice", "rank"),
}
"""The kinds of kills by turns: for one rank, for several, and for going on with another number."""


def draw_kills(
    steps: Mapping[str, int], every: int, count: int, seed: int, *, ranks: int, moving: bool = False
) -> list[Kill]:
    """Draw the steps after which the run is killed, one from each of `count` parts of it.

    Args:
        steps: optimizer steps of each Trainer in the script, by its run's name, in the order of the script.
        every: steps from one save to the next. A step that is saved anyway is left out where it can be, and the first
            kill comes after the first save.
        count: how many kills; fewer are drawn where there are not so many steps.
        seed: what is drawn derives from it.
        ranks: of these, too, the one that sends or gets the signal.
        moving: whether the run goes on with another number of ranks after the first kill.
    """
    generator = random.Random(seed)
    # The last step is left out: what is killed there has nothing left to do.
    places = [(run, step) for run, last in steps.items() for step in range(1, last)]
    later = [(run, step) for run, step in places if step > every] or places
    between = [(run, step) for run, step in later if step % every] or later
    if len(between) < count:
        between = later if len(later) >= count else places
    count = min(count, len(between))
    bounds = [part * len(between) // count for part in range(count + 1)] if count else [0]
    drawn = [between[generator.randrange(low, high)] for low, high in pairwise(bounds)]
    kinds = cycle(KINDS["moving" if moving else "many" if ranks > 1 else "one"])
    return [Kill(run, step, what, generator.randrange(ranks)) for (run, step), what in zip(drawn, kinds, strict=False)]
