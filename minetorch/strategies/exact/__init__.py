"""Training of which every bit is the same at any number of workers: `Trainer(strategy="exact")`.

```
tree.py         pure: which sum is made of which, at any world size
exchange.py     the part of the tree that spans ranks, in two collectives
statistics.py   BatchNorm's running statistics, as one more thing to sum
refusals.py     what this cannot be promised for
strategy.py     an iteration by virtual shards
```
"""

from minetorch.strategies.exact.strategy import VirtualShards

__all__ = ["VirtualShards"]
