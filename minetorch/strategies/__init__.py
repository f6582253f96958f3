"""How a model trains: where it is placed, how gradients become one step of all workers, what its state is.

```
options.py          what a script gives for each: DDP, Exact
base.py             Strategy: what all of them do
data_parallel.py    a single process, or torch's DDP
exact/              the same bits at any number of workers, by virtual shards
accelerated.py      what is taken of accelerate
optimizer_state.py  an optimizer's state by the names of parameters
replicas.py         whether all ranks still have the same weights
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minetorch.options.strategies import DDP, Exact

if TYPE_CHECKING:
    import torch
    from torch import nn

    from minetorch.distributed.world import World
    from minetorch.strategies.accelerated import Amp
    from minetorch.strategies.base import Strategy


def choose_strategy(
    options: DDP | Exact,
    world: World,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    amp: Amp,
    seed: int,
    split_batches: bool,
) -> Strategy:
    """The strategy that the options are of. The other arguments are the Trainer's.

    Raises:
        ConfigurationError: it cannot train this model here.
    """
    if isinstance(options, Exact):
        from minetorch.strategies.exact import VirtualShards

        return VirtualShards(options, world, model, optimizer, amp=amp, seed=seed, split_batches=split_batches)
    from minetorch.strategies.data_parallel import DataParallel

    return DataParallel(options, world, model, optimizer, amp=amp, seed=seed, split_batches=split_batches)
