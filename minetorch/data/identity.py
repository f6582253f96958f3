"""What tells the data of one epoch from other data: ranks compare it, and so does a run that resumes in the middle."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch.utils.data import Subset

from minetorch.errors import in_brief

Unit = Literal["sample", "batch", "stream"]

_PLACES = 64
"""Keys of an epoch that are looked at, evenly spread. Another order differs at nearly all of them."""

_UNITS: dict[str, str] = {
    "sample": "single samples",
    "batch": "batches of a batch sampler",
    "stream": "an IterableDataset",
}


@dataclass(frozen=True)
class EpochData:
    """An epoch's data, as far as it can be known without fetching a sample."""

    unit: Unit
    """What the position in the epoch counts: samples, the user's own batches, or the samples of a stream."""
    samples: int | None
    """Length of the dataset; None where it has none."""
    count: int | None
    """Units in the epoch; None for a stream."""
    order: str
    """Fingerprint of the units' order; "" for a stream."""
    sampler: str
    """Class of the sampler, the batch sampler, or the stream."""
    seed: int

    def to_plain(self) -> dict[str, Any]:
        """As a dict of plain values, for a checkpoint."""
        return asdict(self)

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """What is different from the data that `to_plain` described before, in words; nothing if the order is the same.

        Another seed or sampler that gives the same order is no difference.
        """
        now = self.to_plain()
        decisive = ("unit", "samples") if self.unit == "stream" else ("unit", "count", "order")
        if all(now[name] == before.get(name) for name in decisive):
            return []
        if self.unit != before.get("unit"):
            return [f"{_UNITS[self.unit]} instead of {_UNITS.get(str(before.get('unit')), 'other data')}"]
        changed = [name for name in ("samples", "sampler", "seed") if now[name] != before.get(name)]
        if self.unit == "batch" and self.count != before.get("count"):
            changed.append("count")
        words = [_WORDS[name].format(_or_none(now[name]), _or_none(before.get(name))) for name in changed]
        return words or ["another order of the samples"]


_WORDS = {
    "samples": "{} samples instead of {}",
    "sampler": "{} instead of {}",
    "seed": "seed={} instead of seed={}",
    "count": "{} batches of the batch sampler instead of {}",
}


def fingerprint(units: Sequence[Any], dataset: Any) -> str:
    """Tells one order of keys from another, at the same cost for any number of keys.

    Args:
        units: keys, or lists of keys.
        dataset: what the keys are of. Where it is a `Subset`, the keys in the dataset inside it count.
    """
    places = range(len(units)) if len(units) <= _PLACES else [len(units) * part // _PLACES for part in range(_PLACES)]
    resolve = _resolver(dataset)
    text = repr((len(units), [_plain(units[place], resolve) for place in places]))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def first_keys(units: Sequence[Any], dataset: Any) -> str:
    """The beginning of an order, for a message."""
    resolve = _resolver(dataset)
    keys = ", ".join(str(_plain(unit, resolve)) for unit in units[:3])
    return f"[{keys}, …]" if len(units) > 3 else f"[{keys}]"


def _resolver(dataset: Any) -> Callable[[Any], Any]:
    """From a key to the key in the dataset below all `Subset`s."""
    subsets = []
    while type(dataset) is Subset:
        subsets.append(dataset.indices)
        dataset = dataset.dataset

    def resolve(key: Any) -> Any:
        for indices in subsets:
            key = indices[key]
        return key

    return resolve


def _plain(unit: Any, resolve: Callable[[Any], Any]) -> Any:
    """A key as a plain value that is the same in every process; of a foreign object its type is all that is known."""
    if hasattr(unit, "tolist"):  # of NumPy and torch
        unit = unit.tolist()
    if isinstance(unit, list | tuple):
        return [_plain(key, resolve) for key in unit]
    try:
        key = resolve(operator.index(unit))
        return operator.index(key)
    except (TypeError, LookupError):
        return unit if isinstance(unit, str | bytes | float | None) else type(unit).__name__


def _or_none(value: Any) -> str:
    if value is None:
        return "an unknown number"
    return f"{value:,}" if isinstance(value, int) else in_brief(value).strip("'")
