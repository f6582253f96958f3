"""An iteration by virtual shards.

Each iteration's samples, the same at any world size, are split over a fixed number of virtual shards. Each rank has
several consecutive shards. A shard's forward and backward do not depend on the rank: not on its other samples, its
random generators or its number of threads. The results are summed in a tree that is the same at any world size.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import nn
from torch.utils.data import DataLoader

from minetorch.data import Batch, RankLoader, share_out_by_shards
from minetorch.data.order import derive_seed
from minetorch.data.randomness import reseed
from minetorch.distributed.world import World
from minetorch.errors import CheckpointMismatchError
from minetorch.options.strategies import Exact
from minetorch.strategies.accelerated import Amp, placement
from minetorch.strategies.base import Counted, LossOf, Strategy
from minetorch.strategies.exact.exchange import Exchange
from minetorch.strategies.exact.refusals import BufferGuard, check_exact, refuse_gradients
from minetorch.strategies.exact.statistics import RunningStatistics

THREADS = 1
"""Threads of an operator. The gradients of an MLP with 32 samples differ between one thread and two, and a launcher
gives each worker as many threads as it has cores."""


class VirtualShards(Strategy):
    """Gradients, losses and BatchNorm's statistics have the same bits at any world size."""

    shares_generators: ClassVar[bool] = True

    def __init__(
        self,
        options: Exact,
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        amp: Amp,
        seed: int,
        split_batches: bool,
    ) -> None:
        """Check the arguments.

        Raises:
            ConfigurationError: the strategy cannot give the same bits for this model or these options.
        """
        super().__init__(world, model, optimizer, amp)
        check_exact(options, world, model, optimizer, split_batches=split_batches)
        self._shards = options.virtual_shards
        self._seed = seed
        self._threads: int | None = None

    def place(self) -> None:
        """Move the model to the device, and set the number of threads until `close`."""
        super().place()
        if self.world.size > 1:
            self._start_alike()
        self._exchange = Exchange(self.world, self._shards)
        self._statistics = RunningStatistics(self.unwrapped_model)
        self._buffers = BufferGuard(self.unwrapped_model)
        self._parameters = list(self.unwrapped_model.parameters())
        self._threads = torch.get_num_threads()
        torch.set_num_threads(THREADS)

    def close(self) -> None:
        """Restore the process's number of threads."""
        if self._threads is not None:
            torch.set_num_threads(self._threads)
            self._threads = None

    def share_out(self, source: DataLoader[Any], *, training: bool) -> RankLoader:
        """Split each batch into virtual shards, and give each rank several consecutive ones."""
        return share_out_by_shards(
            source,
            self.world,
            seed=self._seed,
            shards=self._shards,
            training=training,
            place=placement(self.world.device),
        )

    def add_gradients(self, batch: Batch, loss_of: LossOf, *, epoch: int, accumulated: int, stepping: bool) -> Counted:
        """Do the forward and the backward of this rank's shards, and sum up all ranks' gradients.

        Returns:
            The mean loss over all ranks' samples, which rank 0 counts.

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
        # After this, hooks draw the same numbers on every rank, whatever shards it had.
        self._reseed("hooks", epoch, batch.position, 0)
        return Counted(loss, batch.total if self.world.is_main else 0)

    def _gradients(self, loss: torch.Tensor, parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
        for parameter in parameters:
            parameter.grad = None
        self._backward(loss)
        gradients = [parameter.grad for parameter in parameters]
        if any(gradient is None or gradient.is_sparse for gradient in gradients):
            refuse_gradients(self.unwrapped_model)
        return cast("list[torch.Tensor]", gradients)

    @property
    def validation_parts(self) -> int:
        """One for each virtual shard. They are added only at the end, so the sum does not depend on the ranks."""
        return self._shards

    def validation_loss(self, batch: Batch, loss_of: LossOf, sums: torch.Tensor, *, epoch: int) -> torch.Tensor:
        """Do the forward of each of this rank's shards; there is at least one."""
        mean = torch.zeros_like(sums[0])
        for shard, counted, data in batch.parts():
            self._reseed("validate", epoch, batch.position, shard)
            loss = loss_of(data).detach()
            sums[shard].add_(loss, alpha=counted)
            mean.add_(loss, alpha=counted / batch.counted)
        return mean

    # State.

    def state_dict(self) -> dict[str, Any]:
        """The state of `Strategy.state_dict`, with the number of virtual shards."""
        return {**super().state_dict(), "virtual_shards": self._shards}

    def check_state(self, state: Mapping[str, Any], path: str, logger: logging.Logger) -> None:
        """Check that the checkpoint has the same number of virtual shards.

        Raises:
            CheckpointMismatchError: it is another one.
        """
        before = state.get("virtual_shards")
        if before is None:
            logger.warning(
                '%s was made without strategy="exact": only from here on are the bits the same at any number of '
                "workers.",
                path,
            )
        elif before != self._shards:
            raise CheckpointMismatchError(
                f"{path} was made with virtual_shards={before}; virtual_shards={self._shards} was given. "
                f"Every sum depends on it: use strategy=Exact(virtual_shards={before}), or another `code`."
            )

    def _reseed(self, purpose: str, epoch: int, position: int, shard: int) -> None:
        reseed(derive_seed(self._seed, purpose, epoch, position, shard), self.world.device)


def _deposit(
    sums: Sequence[torch.Tensor], earlier: Sequence[torch.Tensor | None], parameters: Sequence[nn.Parameter]
) -> None:
    for parameter, before, total in zip(parameters, earlier, sums, strict=True):
        # In memory of its own and laid out as the parameter, as the optimizer's kernels may go by that.
        parameter.grad = torch.empty_like(parameter).copy_(total) if before is None else before.add_(total)
