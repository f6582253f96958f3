"""The options of each strategy, as a script gives them to the Trainer. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from minetorch.errors import ConfigurationError, in_brief
from minetorch.options.base import Options


@dataclass(frozen=True, kw_only=True)
class DDP(Options):
    """Options of the default strategy, `strategy="ddp"`: a copy of the model on each rank, under torch's DDP.

    Raises:
        ConfigurationError: at construction, for a value that is not allowed.
    """

    name: ClassVar[str] = "ddp"
    find_unused_parameters: bool = False
    """With several workers, look in every step for the parameters that the loss does not depend on; else there must be
    none."""

    def __post_init__(self) -> None:
        self._check_choice("find_unused_parameters", (True, False))


@dataclass(frozen=True, kw_only=True)
class Exact(Options):
    """Options of `strategy="exact"`: every bit of the weights, losses and curves is the same at any number of workers.

    The number may change in the middle of the run. It needs `split_batches=True`. See docs/elastic.md.

    Raises:
        ConfigurationError: at construction, for a value that is not allowed.
    """

    name: ClassVar[str] = "exact"
    virtual_shards: int = 8
    """Into how many parts each batch is split, for the whole of the run; there can be as many workers."""

    def __post_init__(self) -> None:
        self._check_count("virtual_shards")


def strategy_options(strategy: Any) -> DDP | Exact:
    """The options for the Trainer's argument `strategy`: these themselves, or the defaults of the strategy it names.

    Raises:
        ConfigurationError: there is no such strategy.
    """
    if isinstance(strategy, DDP | Exact):
        return strategy
    if isinstance(strategy, str):
        for kind in (DDP, Exact):
            if strategy == kind.name:
                return kind()
    raise ConfigurationError(
        f"strategy={in_brief(strategy)} is not allowed: strategy must be 'ddp' or 'exact', or a DDP(…) or an "
        "Exact(…) of minetorch, such as Exact(virtual_shards=4)."
    )
