"""Which checkpoints to keep, and which is best. Pure.

| keep_last | keep_best | kept, besides what is always kept            |
|-----------|-----------|----------------------------------------------|
| None      | None      | every checkpoint                             |
| n         | None      | the n newest                                 |
| None      | m         | the m best                                   |
| n         | m         | the n newest and the m best (these may overlap) |

keep_every and keep_every_steps keep what they name beside these, for ever: the ends of epochs whose number they divide,
and checkpoints after a number of steps that they divide. By themselves they limit nothing.

Always kept: the newest; every checkpoint that the newest one's table of names points to (so `best`, and a
user's own names); and the protected ones (the one that the run resumed from).

All starts of the run in one folder are ranked together: a run started afresh does not drop a better
checkpoint of an earlier one only because it is of an earlier one. The m best are those with the lowest
(mode "min") or highest ("max") value of the monitored metric; of equal ones the newer; those without the
metric, or with NaN, are never among them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from minetorch.checkpoint.manifest import Manifest

Mode = Literal["min", "max"]


def rankable(metrics: Mapping[str, float], monitor: str) -> float | None:
    """The monitored metric if it can be compared: None if it is not there or NaN."""
    value = metrics.get(monitor)
    return None if value is None or math.isnan(value) else value


def is_better(value: float, than: float, mode: Mode) -> bool:
    """Whether a metric's value is strictly better than another."""
    return value < than if mode == "min" else value > than


def expired(
    manifests: Sequence[Manifest],
    *,
    keep_last: int | None,
    keep_best: int | None,
    keep_every: int | None = None,
    keep_every_steps: int | None = None,
    mode: Mode,
    monitor: str,
    protected: Collection[str] = (),
) -> list[Manifest]:
    """The checkpoints to delete, oldest first, by the table above.

    Args:
        manifests: all checkpoints in the folder, in any order.
        keep_last: how many of the newest to keep, at least 1, or None.
        keep_best: how many of the best to keep, at least 1, or None.
        keep_every: epochs from one end of an epoch that is kept for ever to the next, at least 1, or None.
        keep_every_steps: the same in optimizer steps.
        mode: whether a low ("min") or a high ("max") metric is good.
        monitor: the metric's name.
        protected: names of checkpoints to keep whatever else holds.
    """
    if not manifests or (keep_last is None and keep_best is None):
        return []
    newest_first = sorted(manifests, key=lambda manifest: manifest.key, reverse=True)
    kept = {newest_first[0].name, *newest_first[0].aliases.values(), *protected}
    kept.update(manifest.name for manifest in newest_first[: keep_last or 0])
    kept.update(manifest.name for manifest in _ranked(newest_first, mode, monitor)[: keep_best or 0])
    if keep_every is not None:
        kept.update(one.name for one in newest_first if one.epoch_complete and one.epoch % keep_every == 0)
    if keep_every_steps is not None:
        kept.update(one.name for one in newest_first if one.step % keep_every_steps == 0)
    return [manifest for manifest in reversed(newest_first) if manifest.name not in kept]


def _ranked(newest_first: Sequence[Manifest], mode: Mode, monitor: str) -> list[Manifest]:
    """Those with a comparable metric, the best first; the sort is stable, so that of equal ones the newer leads."""
    comparable = [
        (value, manifest) for manifest in newest_first if (value := rankable(manifest.metrics, monitor)) is not None
    ]
    comparable.sort(key=lambda pair: pair[0] if mode == "min" else -pair[0])
    return [manifest for _, manifest in comparable]
