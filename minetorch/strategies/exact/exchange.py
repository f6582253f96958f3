"""Sums over ranks: each rank puts in its nodes of the tree, and gets the sum of the whole tree, with the same bits.

An all-reduce decides the order of its additions itself. So this uses collectives that only move data: each rank gets
one segment of each node of all ranks, adds these in the order of the tree, and sends its segment of the sum to all. If
the nodes divide evenly, this moves as many bytes as a ring all-reduce.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
import torch.distributed as dist

from minetorch.distributed.world import World
from minetorch.strategies.exact.tree import TreeSum, nodes_by_rank

SMALL_BYTES = 128 * 2**10
"""A smaller node is sent whole to every rank. This saves the latency of a collective."""

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Exchange:
    """Sums lists of tensors over the virtual shards of all ranks."""

    def __init__(self, world: World, shards: int) -> None:
        self._world = world
        self._shards = shards

    def tree(self, leaves: int) -> TreeSum[list[torch.Tensor]]:
        """Make the tree for this rank's leaves. The first `leaves` shards have one leaf each."""
        return TreeSum(leaves, _add_lists)

    def total(self, tree: TreeSum[list[torch.Tensor]], leaves: int, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The sum over all ranks' leaves. Every rank calls it, also a rank without leaves.

        Args:
            tree: the tree, with all of this rank's leaves.
            leaves: the number of leaves of all ranks.
            like: tensors with the types and shapes of a leaf's tensors.
        """
        if self._world.size == 1:
            return tree.root
        total = list(like)
        for dtype in dict.fromkeys(tensor.dtype for tensor in like):
            at = [index for index, tensor in enumerate(like) if tensor.dtype == dtype]
            nodes = [torch.cat([value[index].reshape(-1) for index in at]) for _, value in tree.nodes]
            sizes = [like[index].numel() for index in at]
            flat = self._sum(nodes, leaves, torch.empty(sum(sizes), dtype=dtype, device=like[0].device))
            for index, part in zip(at, flat.split(sizes), strict=True):
                total[index] = part.view(like[index].shape)
        return total

    def _sum(self, nodes: list[torch.Tensor], leaves: int, total: torch.Tensor) -> torch.Tensor:
        size = self._world.size
        whole = total.nbytes < SMALL_BYTES
        segment = len(total) if whole else -(-len(total) // size)
        sent = total.new_empty(size, len(nodes), segment)
        for index, node in enumerate(nodes):
            if whole:
                sent[:, index] = node
            else:
                _cut(node, sent[:, index])
        summed = self._sum_rows(sent.view(-1, segment), leaves)
        if whole:
            return summed
        gathered = total.new_empty(size * segment)
        _all_gather(_bytes(gathered), _bytes(summed))
        return gathered[: len(total)]

    def _sum_rows(self, sent: torch.Tensor, leaves: int) -> torch.Tensor:
        """Send the same number of rows to each rank, and sum the received rows in the order of the tree."""
        by_rank = nodes_by_rank(leaves, self._shards, self._world.size)
        counts = [len(nodes) for nodes in by_rank]
        received = sent.new_empty(sum(counts), sent.shape[1])
        mine = [counts[self._world.rank]] * self._world.size
        dist.all_to_all_single(_bytes(received), _bytes(sent), counts, mine)
        tree = TreeSum(leaves, torch.Tensor.add_)
        for node, row in zip(chain.from_iterable(by_rank), received, strict=True):
            tree.push(node, row)
        return tree.root


def _cut(node: torch.Tensor, segments: torch.Tensor) -> None:
    """Copy a flat tensor into the rows of a matrix, and fill the rest with zeros."""
    rows, width = segments.shape
    full = len(node) // width
    segments[:full] = node[: full * width].view(full, width)
    if full < rows:
        segments[full, : len(node) - full * width] = node[full * width :]
        # Uninitialized memory can hold any bits, such as denormals or signaling NaNs, which are slow to add.
        segments[full, len(node) - full * width :] = 0
        segments[full + 1 :] = 0


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """View the tensor as bytes, so that any backend can move it, whatever its type."""
    return tensor.view(torch.uint8)


def _add_lists(left: list[torch.Tensor], right: list[torch.Tensor]) -> list[torch.Tensor]:
    torch._foreach_add_(left, right)
    return left
