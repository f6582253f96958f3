"""Checks that all ranks have the same weights.

Ranks that average their gradients take the same steps. A rank whose gradients bypass DDP, or whose weights change on
that rank only, trains another model, and no loss shows it. A checkpoint holds the weights of rank 0, so before each
checkpoint the ranks compare theirs. This reads the weights once and exchanges 16 bytes per tensor. A CPU core reads
8 GB per second. A step of Adam reads and writes seven times as much.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import nn

from minetorch.distributed.world import World
from minetorch.errors import RanksDifferError

ROUNDING = 1e-4
"""The tolerated difference, relative to a tensor's greatest value. Ranks on different hardware round differently, for
example in the norm for clipping. Half precision has a larger tolerance: a few units in the last place."""


class Replicas:
    """Compares the ranks' copies of the weights."""

    def __init__(
        self, world: World, model: nn.Module, optimizer: torch.optim.Optimizer, logger: logging.Logger
    ) -> None:
        """Compare nothing yet.

        Args:
            world: the ranks.
            model: its parameters are compared. Its buffers are not: BatchNorm's may differ until DDP sends them.
            optimizer: its parameters outside the model are compared, too.
            logger: for a warning if the weights differ by rounding.
        """
        self._world = world
        self._model = model
        self._optimizer = optimizer
        self._logger = logger
        self._has_warned = False

    def check(self) -> None:
        """Compare the weights of all ranks. Every rank calls it.

        Raises:
            RanksDifferError: the weights differ by more than rounding. Every rank raises it.
        """
        if self._world.size == 1:
            return
        named = dict(self._named())
        sums = torch.stack([_checksum(parameter).to(self._world.device) for parameter in named.values()])
        # One collective gives the greatest and the least: the complement of integers reverses their order.
        greatest, complement = self._world.reduce(torch.cat([sums, ~sums]), "max").cpu().chunk(2)
        differing = (greatest != ~complement).nonzero().flatten().tolist()
        if differing:
            names = list(named)
            self._judge({names[index]: named[names[index]] for index in differing})

    def _named(self) -> Iterator[tuple[str, torch.Tensor]]:
        known: set[int] = set()
        for name, parameter in self._model.named_parameters():
            known.add(id(parameter))
            yield name, parameter
        for number, group in enumerate(self._optimizer.param_groups):
            for index, parameter in enumerate(group["params"]):
                if id(parameter) not in known:
                    yield f"parameter {index} of the optimizer's group {number}", parameter

    def _judge(self, differing: dict[str, torch.Tensor]) -> None:
        """Measure how far each tensor is from that of rank 0."""
        own = [self._distance(parameter) for parameter in differing.values()]
        by_rank = self._world.gather(own)
        for index, (name, parameter) in enumerate(differing.items()):
            distance, rank = max((distances[index], rank) for rank, distances in enumerate(by_rank))
            if distance > _tolerance(parameter):
                others = len(differing) - 1
                more = f", and so {'does' if others == 1 else 'do'} {others} more" if others else ""
                raise RanksDifferError(
                    f"The ranks do not have the same weights: {name} on rank {rank} differs from rank 0 by up to "
                    f"{distance:.1e} of its greatest value{more}. A checkpoint would hold only the weights of rank 0, "
                    "so none is saved. Likely causes: an optimizer that is stepped by hand, in loss_func or a "
                    "hook, with gradients that DDP has not averaged; a parameter of the loss function, which must be a "
                    "part of the model; code that changes weights on some ranks only, as under `if trainer.is_main:`, "
                    "or by random numbers, which differ between ranks. Weights that are "
                    "meant to differ between ranks are not supported."
                )
        greatest = max(map(max, by_rank))
        # A distance of 0 means that the values are equal: 0.0 and -0.0, or two kinds of NaN.
        if greatest > 0 and self._world.is_main and not self._has_warned:
            self._has_warned = True
            self._logger.warning(
                "The ranks' weights differ by rounding: %s, by up to %.1e of its greatest value. Checkpoints hold "
                "those of rank 0, so a resumed run can differ in its last bits from one that was never stopped. The "
                "ranks are on different hardware, have different numbers of threads, or use operations that are not "
                "deterministic.",
                next(iter(differing)),
                greatest,
            )

    def _distance(self, parameter: torch.Tensor) -> float:
        """How far this rank's tensor is from that of rank 0, relative to the greatest value of both."""
        own = parameter.detach()
        first = own.clone()
        torch.distributed.broadcast(first, src=0)
        if not (own.is_floating_point() or own.is_complex()):
            return float(not torch.equal(own, first))
        wide = torch.complex128 if own.is_complex() else torch.float64
        own, first = own.to(wide), first.to(wide)
        same = (own == first) | (own.isnan() & first.isnan())
        if bool(same.all()):
            return 0.0
        apart = torch.where(same, 0, (own - first).abs()).max()
        return float((apart / torch.maximum(own.abs().max(), first.abs().max())).nan_to_num(nan=float("inf")))


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor's bits as 64-bit integers, on its device. Different bits almost surely have another sum."""
    octets = tensor.detach().reshape(-1).view(torch.uint8)
    if octets.storage_offset() % 8:
        octets = octets.clone()
    whole = octets.numel() // 8 * 8
    total = octets[:whole].view(torch.int64).sum()
    return total if whole == octets.numel() else total + octets[whole:].sum()


def _tolerance(tensor: torch.Tensor) -> float:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0.0
    return max(ROUNDING, 4 * torch.finfo(tensor.dtype).eps)
