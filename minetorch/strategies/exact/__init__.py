"""Training with the same bits at any number of workers: `Trainer(strategy="exact")`.

```
tree.py         pure: the order of the additions, the same at any world size
exchange.py     the part of the tree that spans ranks, in two collectives
statistics.py   BatchNorm's running statistics, as one more thing to sum
refusals.py     the models and options that cannot have the same bits
strategy.py     an iteration by virtual shards
```
"""

from minetorch.strategies.exact.strategy import VirtualShards

__all__ = ["VirtualShards"]
