"""How a model trains: its place on a device, one step of all workers from their gradients, and its saved state.

```
base.py             Strategy: what all of them do, and what the Trainer expects of them
data_parallel.py    a single process, or torch's DDP
buckets.py          the buckets in which DDP exchanges gradients
exact/              the same bits at any number of workers, by virtual shards
accelerated.py      what the Trainer takes from accelerate
optimizer_state.py  an optimizer's state by the names of parameters
replicas.py         a check that all ranks have the same weights
```

The options that a script gives for each, `DDP` and `Exact`, are in `minetorch/options/strategies.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minetorch.options.strategies import Exact

if TYPE_CHECKING:
    import torch
    from torch import nn

    from minetorch.distributed.world import World
    from minetorch.options.settings import Settings
    from minetorch.strategies.base import Strategy


def choose_strategy(settings: Settings, world: World, model: nn.Module, optimizer: torch.optim.Optimizer) -> Strategy:
    """Make the strategy for `settings.strategy`.

    Raises:
        ConfigurationError: the strategy cannot train this model here.
    """
    options, amp, seed, split_batches = settings.strategy, settings.amp, settings.seed, settings.split_batches
    if isinstance(options, Exact):
        from minetorch.strategies.exact import VirtualShards

        return VirtualShards(options, world, model, optimizer, amp=amp, seed=seed, split_batches=split_batches)
    from minetorch.strategies.data_parallel import DataParallel

    return DataParallel(options, world, model, optimizer, amp=amp, seed=seed, split_batches=split_batches)
