"""An iteration by virtual shards.

Each iteration's samples, the same at any world size, are split over a fixed number of virtual shards, and each rank
has a run of these. A shard's forward and backward see nothing of the rank that they run on: not its other samples, not
its generators, not its number of threads. What comes of them is summed in a tree that is the same at any world size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

from minetorch.backend import Backend
from minetorch.data import Batch
from minetorch.data.order import derive_seed
from minetorch.elastic.exchange import Exchange
from minetorch.elastic.refusals import BufferGuard, refuse_gradients
from minetorch.elastic.statistics import RunningStatistics
from minetorch.randomness import reseed
from minetorch.world import World

THREADS = 1
"""Threads of an operator. The gradients of an MLP with 32 samples differ between one and two, and a launcher gives
each worker as many as there are cores for it."""


LossOf = Callable[[Any], torch.Tensor]


class Exact:
    """Gradients, losses and BatchNorm's statistics that have the same bits at any world size."""

    def __init__(self, world: World, backend: Backend, *, shards: int, seed: int) -> None:
        """Take over the number of threads until `close`.

        Args:
            world: of at most `shards` ranks.
            backend: whose model no DDP is around.
            shards: virtual shards of each iteration.
            seed: what the shards' generators derive from.
        """
        self._world = world
        self._backend = backend
        self._shards = shards
        self._seed = seed
        self._exchange = Exchange(world, shards)
        self._statistics = RunningStatistics(backend.unwrapped_model)
        self._buffers = BufferGuard(backend.unwrapped_model)
        self._parameters = list(backend.unwrapped_model.parameters())
        self._threads: int | None = torch.get_num_threads()
        torch.set_num_threads(THREADS)

    def close(self) -> None:
        """Give the process its threads back."""
        if self._threads is not None:
            torch.set_num_threads(self._threads)
            self._threads = None

    def add_gradients(self, batch: Batch, loss_of: LossOf, *, epoch: int, accumulated: int) -> torch.Tensor:
        """Add the mean gradient over all ranks' samples to the parameters'. Every rank calls it.

        Args:
            batch: this rank's shards of the iteration.
            loss_of: does a shard's forward, and returns its mean loss.
            epoch: for the shards' generators.
            accumulated: iterations that make a step; the gradient is divided by it.

        Returns:
            The mean loss over all ranks' samples, the same on every rank.

        Raises:
            ConfigurationError: a parameter has no gradient that can be summed, or the forward changes a buffer.
        """
        parameters = [parameter for parameter in self._parameters if parameter.requires_grad]
        earlier = [parameter.grad for parameter in parameters]
        figure = self._parameters[0].new_empty((), dtype=torch.promote_types(self._parameters[0].dtype, torch.float32))
        leaves = min(batch.total, self._shards)
        tree = self._exchange.tree(leaves)
        self._buffers.begin()
        self._statistics.begin()
        for shard, counted, data in batch.parts():
            self._reseed("train", epoch, batch.position, shard)
            share = counted / batch.total
            self._statistics.rewind()
            loss = loss_of(data)
            gradients = self._gradients(loss * (share / accumulated), parameters)
            leaf = [loss.detach().to(figure.dtype) * share, *gradients, *self._statistics.taken(share)]
            tree.push(range(shard, shard + 1), leaf)
        self._buffers.check()
        loss, *sums = self._exchange.total(tree, leaves, [figure, *parameters, *self._statistics.like])
        self._statistics.settle(sums[len(parameters) :], leaves)
        _deposit(sums[: len(parameters)], earlier, parameters)
        # Hooks draw alike on every rank, whatever shards it had.
        self._reseed("hooks", epoch, batch.position, 0)
        return loss

    def _gradients(self, loss: torch.Tensor, parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
        for parameter in parameters:
            parameter.grad = None
        self._backend.backward(loss)
        gradients = [parameter.grad for parameter in parameters]
        if any(gradient is None or gradient.is_sparse for gradient in gradients):
            refuse_gradients(self._backend.unwrapped_model)
        return cast("list[torch.Tensor]", gradients)

    def validation_loss(self, batch: Batch, loss_of: LossOf, sums: torch.Tensor, *, epoch: int) -> torch.Tensor:
        """Add each shard's loss, times its samples, to its place in `sums`.

        Args:
            batch: this rank's shards of the iteration, one at least.
            loss_of: as in `add_gradients`.
            sums: of shape (shards,).
            epoch: for the shards' generators.

        Returns:
            The mean loss over this rank's samples.
        """
        mean = torch.zeros_like(sums[0])
        for shard, counted, data in batch.parts():
            self._reseed("validate", epoch, batch.position, shard)
            loss = loss_of(data).detach()
            sums[shard].add_(loss, alpha=counted)
            mean.add_(loss, alpha=counted / batch.counted)
        return mean

    def _reseed(self, purpose: str, epoch: int, position: int, shard: int) -> None:
        reseed(derive_seed(self._seed, purpose, epoch, position, shard), self._world.device)


def _deposit(
    sums: Sequence[torch.Tensor], earlier: Sequence[torch.Tensor | None], parameters: Sequence[nn.Parameter]
) -> None:
    for parameter, before, total in zip(parameters, earlier, sums, strict=True):
        # In memory of its own and laid out as the parameter, as the optimizer's kernels may go by that.
        parameter.grad = torch.empty_like(parameter).copy_(total) if before is None else before.add_(total)
