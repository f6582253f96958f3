"""Which rank sees which sample when, and the loaders that bring them."""

from minetorch.data.comparison import Comparison
from minetorch.data.loader import Batch, Epoch, RankLoader, mark_last, share_out
from minetorch.data.shards import share_out_by_shards

__all__ = ["Batch", "Comparison", "Epoch", "RankLoader", "mark_last", "share_out", "share_out_by_shards"]
