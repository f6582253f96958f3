"""How a model trains: where it is placed, how gradients become one step of all workers, what its state is.

```
base.py             Strategy: what all of them do
data_parallel.py    a single process, or torch's DDP
exact/              the same bits at any number of workers, by virtual shards
accelerated.py      what is taken of accelerate
optimizer_state.py  an optimizer's state by the names of parameters
replicas.py         whether all ranks still have the same weights
```
"""

from __future__ import annotations

import torch
from torch import nn

from minetorch.settings import Settings
from minetorch.strategies.base import Strategy
from minetorch.strategies.data_parallel import DataParallel
from minetorch.world import World

__all__ = ["Strategy", "choose_strategy"]


def choose_strategy(world: World, model: nn.Module, optimizer: torch.optim.Optimizer, settings: Settings) -> Strategy:
    """The strategy that the settings ask for.

    Raises:
        ConfigurationError: it cannot train this model here.
    """
    if settings.elastic:
        from minetorch.strategies.exact import Exact

        return Exact(world, model, optimizer, settings)
    return DataParallel(world, model, optimizer, settings)
