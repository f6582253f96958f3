from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from minetorch.checkpoint import Manifest
from minetorch.checkpoint.retention import expired, is_better, rankable

Make = Callable[..., Manifest]

# Losses of checkpoints 1 to 6; None has none.
LOSSES: list[float | None] = [5.0, 1.0, 3.0, 1.0, math.nan, None]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {1, 2, 3, 4, 5, 6}),
        ({"keep_last": 1}, {6}),
        ({"keep_last": 3}, {4, 5, 6}),
        ({"keep_last": 9}, {1, 2, 3, 4, 5, 6}),
        ({"keep_best": 1}, {4, 6}),  # of 2 and 4, which are equal, the newer; and the newest
        ({"keep_best": 2}, {2, 4, 6}),
        ({"keep_best": 3}, {2, 3, 4, 6}),
        ({"keep_best": 9}, {1, 2, 3, 4, 6}),  # neither NaN nor nothing is ever among the best
        ({"keep_best": 1, "mode": "max"}, {1, 6}),
        ({"keep_last": 2, "keep_best": 1}, {4, 5, 6}),
        ({"keep_last": 1, "keep_best": 2}, {2, 4, 6}),
        ({"keep_best": 2, "monitor": "accuracy"}, {6}),
        ({"keep_last": 1, "protected": (1, 3)}, {1, 3, 6}),
        ({"keep_last": 1, "aliases": {"best": 2, "mine": 3}}, {2, 3, 6}),
        ({"keep_last": 3, "aliases": {"best": 2}}, {2, 4, 5, 6}),
        ({"keep_best": 1, "aliases": {"latest": 6, "best": 2}}, {2, 4, 6}),
        ({"keep_last": 1, "keep_every": 2}, {2, 4, 6}),
        ({"keep_last": 1, "keep_every": 1}, {1, 2, 4, 5, 6}),  # 3 is no end of an epoch
        ({"keep_last": 1, "keep_every": 7}, {6}),
        ({"keep_last": 1, "keep_every_steps": 3}, {3, 6}),
        ({"keep_best": 1, "keep_every": 5, "keep_every_steps": 2}, {2, 4, 5, 6}),
        ({"keep_every": 2, "keep_every_steps": 2}, {1, 2, 3, 4, 5, 6}),  # by themselves they limit nothing
    ],
    ids=str,
)
def test_what_is_kept(manifest: Make, options: dict[str, Any], kept: set[int]) -> None:
    options = dict(options)  # a second run in this process shall find what the first one found
    names = {n: manifest(1, n, n).name for n in range(1, 7)}
    aliases = {alias: names[n] for alias, n in options.pop("aliases", {}).items()}
    manifests = [
        manifest(
            *(1, n, n),
            epoch=n,
            epoch_complete=n != 3,
            metrics={} if loss is None else {"val_loss": loss},
            aliases=aliases if n == 6 else {},
        )
        for n, loss in enumerate(LOSSES, 1)
    ]
    protected = [names[n] for n in options.pop("protected", ())]
    options = {"keep_last": None, "keep_best": None, "mode": "min", "monitor": "val_loss", **options}
    for order in (manifests, manifests[::-1]):
        dropped = [each.sequence for each in expired(order, protected=protected, **options)]
        assert dropped == sorted(set(range(1, 7)) - kept)


def test_only_the_newest_table_of_names_counts(manifest: Make) -> None:
    old = manifest(1, 1, 1, aliases={"best": manifest(1, 1, 1).name})
    new = manifest(1, 2, 2)
    assert expired([old, new], keep_last=1, keep_best=None, mode="min", monitor="val_loss") == [old]


def test_generations_are_ranked_together(manifest: Make) -> None:
    first_good, first_bad = manifest(1, 1, 900, metrics={"m": 0.1}), manifest(1, 2, 901, metrics={"m": 0.9})
    second = manifest(2, 1, 5, metrics={"m": 0.5})
    dropped = expired([second, first_bad, first_good], keep_last=None, keep_best=1, mode="min", monitor="m")
    assert dropped == [first_bad]


def test_nothing_expires_of_nothing() -> None:
    assert expired([], keep_last=1, keep_best=1, mode="min", monitor="m") == []


def test_infinities_rank_and_nan_does_not() -> None:
    assert rankable({"m": math.inf}, "m") == math.inf
    assert rankable({"m": math.nan}, "m") is None
    assert rankable({}, "m") is None
    assert is_better(1, 2, "min")
    assert is_better(2, 1, "max")
    assert not is_better(1, 1, "min")
    assert not is_better(1, 1, "max")
