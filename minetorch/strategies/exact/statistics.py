"""BatchNorm's running statistics over virtual shards.

Each shard moves them from where the iteration found them, as if it were alone, and the iteration's are the mean over
the shards, weighted by samples. What a rank sees in between, and in which order, leaves no trace.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def keeps_statistics(module: nn.Module) -> bool:
    """Whether the module has buffers that `RunningStatistics` takes care of."""
    return isinstance(module, _NormBase) and module.running_mean is not None


class RunningStatistics:
    """The statistics of all of a model's layers that keep any."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = [module for module in model.modules() if keeps_statistics(module)]
        self._running: list[torch.Tensor] = []
        self._counters: list[torch.Tensor] = []
        self._before: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []

    def begin(self) -> None:
        """At the start of an iteration: note what there is, of the layers that are in training mode."""
        layers = [layer for layer in self._layers if layer.training]
        self._running = _buffers(layers, "running_mean", "running_var")
        self._counters = _buffers(layers, "num_batches_tracked")
        self._before = [t.clone() for t in self._running], [t.clone() for t in self._counters]

    @property
    def like(self) -> list[torch.Tensor]:
        """Tensors of the types and shapes of what `taken` returns."""
        return [*self._running, *(tensor.float() for tensor in self._counters)]

    def rewind(self) -> None:
        """Before a shard's forward: as the iteration began."""
        if self._running:
            torch._foreach_copy_(self._running, self._before[0])
            torch._foreach_copy_(self._counters, self._before[1])

    def taken(self, weight: float) -> list[torch.Tensor]:
        """After a shard's forward: its statistics by its weight, and how often it used each layer."""
        used = [(now - before).float() for now, before in zip(self._counters, self._before[1], strict=True)]
        return [*torch._foreach_mul(self._running, weight), *used] if self._running else []

    def settle(self, sums: Sequence[torch.Tensor], shards: int) -> None:
        """At the iteration's end: take over the sums of what `taken` returned for each of the shards."""
        running, used = sums[: len(self._running)], sums[len(self._running) :]
        self.rewind()
        for counter, uses in zip(self._counters, used, strict=True):
            counter.add_((uses / shards).ceil().to(counter.dtype))
        for index, tensor in enumerate(self._running):
            # A layer that no shard used keeps what it had, to the bit.
            tensor.copy_(torch.where(used[index // 2] > 0, running[index], tensor))


def _buffers(layers: Sequence[nn.Module], *names: str) -> list[torch.Tensor]:
    return [layer.get_buffer(name) for layer in layers for name in names]
