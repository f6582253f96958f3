"""Whether all ranks have the same data. The Trainer shares it out; where a script has split it, most would be lost.

The ranks compare once at a start, and streams once more where they end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from minetorch.data.loader import Batch, Epoch, RankLoader
from minetorch.data.sketch import Sketch, are_alike, differ_in_noise_alone
from minetorch.distributed.world import SideGroup, World
from minetorch.errors import ConfigurationError

STREAM_END_S = 300.0
"""Seconds for which a rank at the end of its stream waits for the others to come there."""

_ADVICE = "Give every rank all of the data, not split by rank; the Trainer shares it out over the ranks."

_GROUPS = 4
"""Different values that a message names."""


class Comparison:
    """Compares the loaders of all ranks. With one rank it does nothing."""

    def __init__(self, world: World, logger: logging.Logger) -> None:
        self._world = world
        self._logger = logger
        self._compared: set[str] = set()
        self._side: SideGroup | None = None

    def traits(self, loaders: Mapping[str, RankLoader | None]) -> None:
        """Compare what is known without reading any data, such as the lengths. Every rank calls it.

        Raises:
            ConfigurationError: on every rank, if a loader is not the same on all.
        """
        if self._world.size == 1:
            return
        of_ranks = self._world.on_all(
            lambda: {name: {} if loader is None else loader.traits() for name, loader in loaders.items()}
        )
        for name in loaders:
            for trait in dict.fromkeys(trait for traits in of_ranks for trait in traits[name]):
                values = [traits[name].get(trait) for traits in of_ranks]
                if len(set(values)) > 1:
                    raise ConfigurationError(
                        f"{name} is not the same on every rank: {trait} is {_by_rank(values)}. {_ADVICE}"
                    )

    def epoch(self, name: str, loader: RankLoader, *arguments: Any, **options: Any) -> Epoch:
        """`loader.epoch(…)`, whose order is compared if it is the first. Every rank calls it.

        Args:
            name: of the loader, for messages.
            loader: this rank's.
            arguments: for its `epoch`.
            options: for its `epoch`.

        Raises:
            ConfigurationError: on every rank, if the order is not the same on all. For a stream it is raised by the
                batches: if the first samples, or where it ends, are not the same.
            RemoteError: another rank's sampler has failed.
        """
        if self._world.size == 1:
            return loader.epoch(*arguments, **options)
        if loader.is_stream:

            def open_epoch() -> Epoch:
                return loader.epoch(*arguments, **options)

            epoch = open_epoch()
            return epoch._replace(batches=self._compared_stream(name, loader, epoch.batches, open_epoch))
        if name in self._compared:
            return loader.epoch(*arguments, **options)
        return self._compared_order(name, loader, arguments, options)

    def _compared_order(
        self, name: str, loader: RankLoader, arguments: Sequence[Any], options: Mapping[str, Any]
    ) -> Epoch:
        opened: list[Epoch] = []

        def open_epoch() -> tuple[str, str]:
            opened.append(loader.epoch(*arguments, **options))
            return opened[0].data.order, opened[0].first_keys

        orders, beginnings = zip(*self._world.on_all(open_epoch), strict=True)
        if len(set(orders)) > 1:
            raise ConfigurationError(
                f"{name} does not give the same order on every rank: the epoch begins with {_by_rank(beginnings)}. "
                f"{_ADVICE} A sampler that shuffles must draw from the global generator of Python, NumPy or torch."
            )
        self._compared.add(name)
        return opened[0]

    def _compared_stream(
        self, name: str, loader: RankLoader, batches: Iterator[Batch], open_again: Callable[[], Epoch]
    ) -> Iterator[Batch]:
        if name not in self._compared:
            first: list[Batch] = []

            def read() -> Sketch:
                first.extend(batch for batch in [next(batches, None)] if batch is not None)
                return loader.sketch

            self._check_beginnings(name, self._world.on_all(read), lambda: _repeats(loader, open_again))
            self._compared.add(name)
            if loader.is_training:
                self._side = SideGroup(self._world, timedelta(seconds=STREAM_END_S))
            yield from first
        yield from batches
        if self._side is not None and loader.is_training:
            self._end_together(name, loader, self._side)

    def _check_beginnings(self, name: str, sketches: Sequence[Sketch], repeats: Callable[[], bool]) -> None:
        """Refuse streams that do not begin alike, unless augmentation can be why.

        Augmentation with a generator of its own gives other numbers at each reading; a part of the data gives the same.
        """
        other = next((rank for rank, own in enumerate(sketches) if not are_alike(sketches[0], own)), None)
        if other is None:
            return
        if all(differ_in_noise_alone(sketches[0], own) for own in sketches) and not any(self._world.on_all(repeats)):
            if self._world.is_main:
                self._logger.warning(
                    "The stream of %s gives other values at each reading, so whether every rank reads the same samples "
                    "cannot be checked, and a resumed run is not exact. If its augmentation draws from the global "
                    "generator of Python, NumPy or torch, the Trainer seeds it.",
                    name,
                )
            return
        raise ConfigurationError(
            f"The stream of {name} does not give the same samples on every rank: its first ones on rank "
            f"{other} are not those on rank 0. {_ADVICE} What it draws at random must come from the global "
            "generator of Python, NumPy or torch."
        )

    def _end_together(self, name: str, loader: RankLoader, side: SideGroup) -> None:
        """Wait for the other ranks at the end of the stream, aside from the collectives of training.

        A rank that has more to read waits in its next exchange of gradients, where this one never comes.
        """
        try:
            counts = side.gather(loader.read)
        except TimeoutError:
            raise ConfigurationError(
                f"The stream of {name} ended on rank {self._world.rank} after {loader.read:,} samples of the epoch, "
                f"but {STREAM_END_S:g} s later not on every rank. {_ADVICE}"
            ) from None
        self._check_ends(name, counts)

    def stream_end(self, name: str, loader: RankLoader) -> None:
        """Compare where a stream that was read without collectives, for validation, ended. Every rank calls it.

        Raises:
            ConfigurationError: on every rank, if not after the same number of samples.
        """
        if self._world.size > 1 and loader.is_stream:
            self._check_ends(name, self._world.gather(loader.read))

    def close(self) -> None:
        """Compare nothing any more."""
        if self._side is not None:
            self._side.close()
            self._side = None

    def _check_ends(self, name: str, counts: Sequence[int]) -> None:
        if len(set(counts)) > 1:
            raise ConfigurationError(
                f"The stream of {name} does not have the same length on every rank: {_by_rank(counts)}. {_ADVICE}"
            )


def _repeats(loader: RankLoader, open_again: Callable[[], Epoch]) -> bool:
    """Whether a second reading of the stream begins as the first one."""
    before = loader.sketch
    next(open_again().batches, None)
    return are_alike(before, loader.sketch)


def _by_rank(values: Sequence[Any]) -> str:
    """Each value and its ranks: "64 on rank 0, 40 on ranks 1, 2"."""
    parts = []
    for value in list(dict.fromkeys(values)):
        ranks = [str(rank) for rank, own in enumerate(values) if own == value]
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else f"{value}"
        many = ", …" if len(ranks) > _GROUPS else ""
        parts.append(f"{shown} on rank{'s' * (len(ranks) > 1)} {', '.join(ranks[:_GROUPS])}{many}")
    return ", ".join(parts[:_GROUPS]) + (", …" if len(parts) > _GROUPS else "")
