"""Which rank sees which sample when, and the loaders that bring them."""

from minetorch.data.loader import Batch, Epoch, RankLoader, mark_last, share_out

__all__ = ["Batch", "Epoch", "RankLoader", "mark_last", "share_out"]
