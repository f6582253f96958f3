"""Which DataLoaders the Trainer can share out over the ranks. Pure: nothing is read from the dataset or the sampler."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from minetorch.errors import ConfigurationError

_HARMLESS = frozenset({"__init__", "__setattr__", "check_worker_number_rationality"})
"""Methods of a DataLoader that a subclass may override: they do not change what the loader yields."""


def check_loader(name: str, loader: DataLoader[Any]) -> None:
    """Refuse a loader whose own behaviour the Trainer would not use.

    Args:
        name: of the argument, for the message.
        loader: the user's DataLoader.

    Raises:
        ConfigurationError: its class overrides the iteration, or a sampler splits the data over the ranks by itself.
    """
    overridden = _overridden(type(loader))
    if overridden:
        raise ConfigurationError(
            f"{name} is a {type(loader).__name__} with its own {', '.join(overridden)}, which the Trainer would not "
            "call: it reads the dataset and the sampler itself. Give a plain DataLoader; do what these methods do in "
            "the dataset, in collate_fn, in a sampler or in loss_func."
        )
    splitting = next(_splitting_samplers(loader), None)
    if splitting is not None:
        raise ConfigurationError(
            f"{name} has a {type(splitting).__name__} that splits the data over {splitting.num_replicas} ranks, and "
            "the Trainer would split each part again. Make it with num_replicas=1 and rank=0, or give the sampler "
            "inside it, or a plain one over all of the data: the Trainer shares the data out over the ranks."
        )


def is_plain_distributed(sampler: Any) -> bool:
    """Whether `sampler` iterates as torch's `DistributedSampler` does: over a dataset, in order or shuffled."""
    return isinstance(sampler, DistributedSampler) and type(sampler).__iter__ is DistributedSampler.__iter__


def samples_per_batch(loader: DataLoader[Any]) -> int | None:
    """Samples in a batch, or None where the user's own batch sampler says, or nothing is batched."""
    if type(loader.batch_sampler) is BatchSampler:
        return loader.batch_sampler.batch_size
    return loader.batch_size


def has_own_batches(loader: DataLoader[Any]) -> bool:
    """Whether a batch sampler of the user's makes the batches."""
    is_stream = isinstance(loader.dataset, IterableDataset)
    return samples_per_batch(loader) is None and loader.batch_sampler is not None and not is_stream


def sampler_of(loader: DataLoader[Any]) -> Any:
    """What gives the order of an epoch: the sampler, or the user's own batch sampler."""
    if has_own_batches(loader):
        return loader.batch_sampler
    return loader.batch_sampler.sampler if type(loader.batch_sampler) is BatchSampler else loader.sampler


def with_inner_samplers(sampler: Any) -> Iterator[Any]:
    """The sampler and those inside it: a batch sampler holds a sampler, and some hold more."""
    seen: set[int] = set()
    while sampler is not None and id(sampler) not in seen:
        seen.add(id(sampler))
        yield sampler
        sampler = getattr(sampler, "sampler", None)


def _overridden(kind: type) -> list[str]:
    """The methods and properties of a DataLoader, other than harmless ones, that the class has made its own."""
    names = [name for name, value in vars(DataLoader).items() if isinstance(value, FunctionType | property)]
    base = _known_base(kind)
    return [name for name in names if name not in _HARMLESS and getattr(kind, name) is not getattr(base, name)]


def _known_base(kind: type) -> type:
    """The class whose iteration is known: torchdata's StatefulDataLoader yields what a DataLoader does."""
    stateful = getattr(sys.modules.get("torchdata.stateful_dataloader"), "StatefulDataLoader", DataLoader)
    return stateful if issubclass(kind, stateful) else DataLoader


def _splitting_samplers(loader: DataLoader[Any]) -> Iterator[Any]:
    outermost = sampler_of(loader)
    for sampler in with_inner_samplers(outermost):
        # The outermost one, if it is torch's own, is not iterated over: only its `shuffle` counts.
        if not (sampler is outermost and is_plain_distributed(sampler)):
            replicas = getattr(sampler, "num_replicas", 1)
            # A sampler that repeats samples may call their number so, too; one that splits knows its rank.
            if isinstance(replicas, int) and replicas > 1 and hasattr(sampler, "rank"):
                yield sampler
