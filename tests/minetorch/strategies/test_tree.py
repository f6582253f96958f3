"""Which sum is made of which: symbols take the place of tensors, and calls that of ranks."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minetorch.data.order import split_evenly
from minetorch.strategies.exact.tree import TreeSum, nodes_by_rank

anywhere = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
"""On a busy machine, too, and without leaving files."""


def associate(left, right):
    return (left, right)


def by_definition(leaves, start=0, width=None):
    """The tree as halves of halves; what lies beyond the leaves is not there."""
    if width is None:
        width = 1 << (leaves - 1).bit_length()
    if start >= leaves:
        return None
    if width == 1:
        return start
    left = by_definition(leaves, start, width // 2)
    right = by_definition(leaves, start + width // 2, width // 2)
    return left if right is None else (left, right)


@st.composite
def worlds(draw):
    """Virtual shards, how many of them have a sample, and ranks."""
    shards = draw(st.integers(1, 70))
    return shards, draw(st.integers(1, shards)), draw(st.integers(1, shards))


def sum_of_rank(shards, leaves, world_size, rank):
    tree = TreeSum(leaves, associate)
    for leaf in split_evenly(shards, world_size, rank):
        if leaf < leaves:
            tree.push(range(leaf, leaf + 1), leaf)
    return tree.nodes


@anywhere
@given(worlds())
def test_the_association_is_the_same_at_any_world_size(world):
    shards, leaves, world_size = world
    whole = TreeSum(leaves, associate)
    for rank in range(world_size):
        for node, value in sum_of_rank(shards, leaves, world_size, rank):
            whole.push(node, value)
    assert whole.root == by_definition(leaves)


@anywhere
@given(worlds())
def test_each_rank_knows_the_nodes_of_the_others(world):
    shards, leaves, world_size = world
    ranks = [tuple(node for node, _ in sum_of_rank(shards, leaves, world_size, rank)) for rank in range(world_size)]
    assert nodes_by_rank(leaves, shards, world_size) == tuple(ranks)
    assert [leaf for nodes in ranks for node in nodes for leaf in node] == list(range(leaves))


@anywhere
@given(st.integers(1, 500))
def test_a_sum_holds_few_nodes_at_a_time(leaves):
    tree = TreeSum(leaves, associate)
    held = 0
    for leaf in range(leaves):
        held = max(held, len(tree.nodes) + 1)
        tree.push(range(leaf, leaf + 1), leaf)
    assert held <= (leaves - 1).bit_length() + 1


def test_where_the_shards_divide_evenly_a_rank_has_one_node():
    for world_size in (1, 2, 4, 8):
        assert {len(nodes) for nodes in nodes_by_rank(8, 8, world_size)} == {1}
