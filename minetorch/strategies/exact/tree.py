"""A binary tree of sums that does not depend on how ranks share its leaves. Pure: no process, no tensor.

Floating-point addition is not associative, so a sum's bits depend on the order of the additions. Here the order
depends only on the number of leaves. A *node* is a range of leaves: its length is a power of two, its start is a
multiple of the length, and the last leaf may cut it short:

```
0───────────┐
    0─4     4──6        node 4 to 6 of 6 leaves has nothing to the right, and stands for itself
 0-2   2-4  4-6
0 1   2 3   4 5
```

A rank with a range of leaves can sum some nodes of the tree alone. The nodes of all ranks, in order, give the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Generic, TypeVar

from minetorch.data.order import split_evenly

Value = TypeVar("Value")


def are_siblings(left: range, right: range, leaves: int) -> bool:
    """Whether two neighbouring nodes are the halves of a node of the tree over `leaves` leaves.

    The left half is always full; the right one may be cut short by the end of the leaves.
    """
    width = len(left)
    return left.start % (2 * width) == 0 and right.start == left.stop and right.stop == min(left.stop + width, leaves)


class TreeSum(Generic[Value]):
    """Adds up nodes that come from left to right. It holds at most one node more than log2 of their number."""

    def __init__(self, leaves: int, add: Callable[[Value, Value], Value]) -> None:
        """Start without nodes.

        Args:
            leaves: the number of leaves of the whole tree, not only of those that are pushed here.
            add: returns the sum of a left and a right value; it may overwrite the left one.
        """
        self.nodes: list[tuple[range, Value]] = []
        """The nodes that could not be added up further, from left to right."""
        self._leaves = leaves
        self._add = add

    def push(self, node: range, value: Value) -> None:
        """Add a node to the right of all earlier ones, and add up all siblings."""
        nodes = self.nodes
        nodes.append((node, value))
        while len(nodes) > 1 and are_siblings(nodes[-2][0], nodes[-1][0], self._leaves):
            right, addend = nodes.pop()
            left, value = nodes.pop()
            nodes.append((range(left.start, right.stop), self._add(value, addend)))

    @property
    def root(self) -> Value:
        """The sum of all leaves."""
        ((_, value),) = self.nodes
        return value


@cache
def nodes_by_rank(leaves: int, shards: int, world_size: int) -> tuple[tuple[range, ...], ...]:
    """The nodes that remain on each rank after it has summed its own leaves.

    Args:
        leaves: the number of shards that have a sample. These are the first ones.
        shards: the number of virtual shards. Each rank has several consecutive ones.
        world_size: at most `shards`.
    """
    return tuple(_nodes(split_evenly(shards, world_size, rank), leaves) for rank in range(world_size))


def _nodes(own: range, leaves: int) -> tuple[range, ...]:
    tree: TreeSum[None] = TreeSum(leaves, lambda left, right: None)
    for leaf in own:
        if leaf < leaves:
            tree.push(range(leaf, leaf + 1), None)
    return tuple(node for node, _ in tree.nodes)
