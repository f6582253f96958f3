"""BatchNorm's running statistics over virtual shards.

Each shard updates the statistics from the start of the iteration, as if it were alone. The iteration's result is the
mean over the shards, weighted by samples. It does not depend on which rank has which shards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def keeps_statistics(module: nn.Module) -> bool:
    """Whether `RunningStatistics` handles the module's buffers."""
    return isinstance(module, _NormBase) and module.running_mean is not None


class RunningStatistics:
    """The running statistics of all layers of a model."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = [module for module in model.modules() if keeps_statistics(module)]
        self._running: list[torch.Tensor] = []
        self._counters: list[torch.Tensor] = []
        self._before: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []

    def begin(self) -> None:
        """Record the statistics of the layers in train mode, at the start of an iteration."""
        layers = [layer for layer in self._layers if layer.training]
        self._running = _buffers(layers, "running_mean", "running_var")
        self._counters = _buffers(layers, "num_batches_tracked")
        self._before = [t.clone() for t in self._running], [t.clone() for t in self._counters]

    @property
    def like(self) -> list[torch.Tensor]:
        """Tensors with the types and shapes of those that `taken` returns."""
        return [*self._running, *(tensor.float() for tensor in self._counters)]

    def rewind(self) -> None:
        """Restore the statistics from the start of the iteration, before a shard's forward."""
        if self._running:
            torch._foreach_copy_(self._running, self._before[0])
            torch._foreach_copy_(self._counters, self._before[1])

    def taken(self, weight: float) -> list[torch.Tensor]:
        """The shard's statistics times its weight, and the number of uses of each layer, after the shard's forward."""
        used = [(now - before).float() for now, before in zip(self._counters, self._before[1], strict=True)]
        return [*torch._foreach_mul(self._running, weight), *used] if self._running else []

    def settle(self, sums: Sequence[torch.Tensor], shards: int) -> None:
        """Set the statistics from the sums over all shards' `taken`, at the end of the iteration."""
        running, used = sums[: len(self._running)], sums[len(self._running) :]
        self.rewind()
        for counter, uses in zip(self._counters, used, strict=True):
            counter.add_((uses / shards).ceil().to(counter.dtype))
        for index, tensor in enumerate(self._running):
            # A layer that no shard used keeps its bits.
            tensor.copy_(torch.where(used[index // 2] > 0, running[index], tensor))


def _buffers(layers: Sequence[nn.Module], *names: str) -> list[torch.Tensor]:
    return [layer.get_buffer(name) for layer in layers for name in names]
