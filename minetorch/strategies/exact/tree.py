"""A binary tree of sums that is the same however its leaves are spread over ranks. Pure: no process, no tensor.

Floating-point addition is not associative, so that a sum's bits depend on what is added to what. Here that depends on
the number of leaves alone. A *node* is a run of leaves that starts at a multiple of a power of two and ends after as
many leaves, or at the last leaf:

```
0───────────┐
    0─4     4──6        node 4 to 6 of 6 leaves has nothing to the right, and stands for itself
 0-2   2-4  4-6
0 1   2 3   4 5
```

A rank that has a run of leaves can sum some nodes of the tree alone; those of all ranks, in order, give the rest.
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
    """Adds up nodes that come from left to right. It holds one more than log2 of their number at most."""

    def __init__(self, leaves: int, add: Callable[[Value, Value], Value]) -> None:
        """Nothing summed yet.

        Args:
            leaves: of the whole tree, not only those that will be pushed here.
            add: returns the sum of a left and a right value; it may overwrite the left one.
        """
        self.nodes: list[tuple[range, Value]] = []
        """What could not be added up further, from left to right."""
        self._leaves = leaves
        self._add = add

    def push(self, node: range, value: Value) -> None:
        """Put a node to the right of all that came before, and add up what now can be."""
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
    """The nodes that each rank is left with when it has summed its own leaves.

    Args:
        leaves: shards that have a sample: the first so many.
        shards: virtual shards, of which each rank has a run.
        world_size: at most `shards`.
    """
    return tuple(_nodes(split_evenly(shards, world_size, rank), leaves) for rank in range(world_size))


def _nodes(own: range, leaves: int) -> tuple[range, ...]:
    tree: TreeSum[None] = TreeSum(leaves, lambda left, right: None)
    for leaf in own:
        if leaf < leaves:
            tree.push(range(leaf, leaf + 1), None)
    return tuple(node for node, _ in tree.nodes)
