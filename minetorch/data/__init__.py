"""Which rank sees which sample when, and the loaders that bring them."""

from minetorch.data.loader import Batch, RankLoader, mark_last, share_out

__all__ = ["Batch", "RankLoader", "mark_last", "share_out"]
