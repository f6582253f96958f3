"""The order of samples, without processes or data."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minetorch.data.order import EpochPlan, Share, derive_seed, derive_seeds, share_of, split_evenly

SIZES = [0, 1, 2, 3, 7, 8, 29, 64, 65]
WORLDS = [1, 2, 3, 4, 7]


def test_an_even_split_covers_everything_once_and_is_even():
    for length, parts in itertools.product(SIZES, WORLDS):
        split = [split_evenly(length, parts, part) for part in range(parts)]
        assert [index for part in split for index in part] == list(range(length))
        assert max(map(len, split)) - min(map(len, split)) <= 1


def test_shares_count_every_unit_once_and_no_rank_is_left_without():
    for length, world in itertools.product(SIZES[1:], WORLDS):
        shares = [share_of(range(length), rank, world) for rank in range(world)]
        assert all(share.units for share in shares), "every rank must take part in the gradients' sum"
        counted = [unit for share in shares for unit in share.units[: share.counted]]
        assert counted == list(range(length))
        assert {share.total for share in shares} == {length}


def test_an_epoch_is_seen_once_by_all_ranks_together():
    for length, world, chunk in itertools.product(SIZES, WORLDS, [1, 8, 12]):
        plans = [EpochPlan(range(length), chunk, rank, world) for rank in range(world)]
        assert len({len(plan) for plan in plans}) == 1, "every rank must make the same number of iterations"
        seen = [u for i in range(len(plans[0])) for p in plans for u in p[i].units[: p[i].counted]]
        assert seen == list(range(length))


def test_the_rest_of_an_epoch_is_the_same_at_another_world_size():
    whole = range(100)
    before = [EpochPlan(whole, 12, rank, 4) for rank in range(4)]
    seen = [u for i in range(3) for plan in before for u in plan[i].units]
    after = [EpochPlan(whole, 9, rank, 3, start=len(seen)) for rank in range(3)]
    rest = [u for i in range(len(after[0])) for p in after for u in p[i].units[: p[i].counted]]
    assert seen + rest == list(whole)


def test_drop_last_leaves_out_the_chunk_that_is_not_full():
    assert len(EpochPlan(range(29), 8, 0, 2)) == 4
    assert len(EpochPlan(range(29), 8, 0, 2, drop_last=True)) == 3


def test_shares_know_their_place():
    assert share_of("abcde", 0, 2) == Share("abc", 3, 5, 0)
    assert share_of("abcde", 1, 2, at=10) == Share("de", 2, 5, 13)
    assert share_of("ab", 2, 4, at=10) == Share("a", 0, 2, 10)
    assert share_of("ab", 3, 4, at=10) == Share("b", 0, 2, 11)
    assert Share("a", 1, 1).first == 0


def test_a_plan_by_its_figures():
    plan = EpochPlan("abcdefg", 4, 1, 2)
    assert [plan[index] for index in range(len(plan))] == list(plan) == [Share("cd", 2, 4, 2), Share("g", 1, 3, 6)]
    rest = EpochPlan("abcdefg", 4, 0, 1, start=2)
    assert [rest[index] for index in range(len(rest))] == list(rest) == [Share("cdef", 4, 4, 2), Share("g", 1, 1, 6)]
    full = EpochPlan("abcdefg", 4, 0, 1, start=2, drop_last=True)
    assert [full[index] for index in range(len(full))] == list(full) == [Share("cdef", 4, 4, 2)]
    assert len(EpochPlan("abc", 4, 0, 1, start=3)) == len(EpochPlan("abc", 4, 0, 1, start=9)) == 0
    assert len(EpochPlan("abc", 4, 0, 1, start=9, drop_last=True)) == 0
    assert list(EpochPlan("abc", 4, 0, 1, start=3)) == []


@pytest.mark.parametrize("index", [-1, 2, 3])
def test_indexing_past_the_end_is_an_error(index):
    with pytest.raises(IndexError, match=f"^{index}$"):
        EpochPlan("abcdefg", 4, 0, 2)[index]


def test_seeds_of_neighbouring_epochs_and_purposes_are_unrelated():
    seeds = {derive_seed(seed, purpose, epoch) for seed in range(20) for purpose in "ab" for epoch in range(20)}
    assert len(seeds) == 20 * 2 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "order", 1) == derive_seed(0, "order", 1)


def test_seeds_are_the_same_in_every_version():
    """A run of an older version resumes to the bit only with the same seeds. Never change these."""
    assert derive_seed(0) == 4761921975702974394
    assert derive_seed(0, "order", 1) == 2961819992523135983
    assert derive_seed(7, "augment", 3, 2) == 3570792032232511536
    assert derive_seeds(7, "augment", 3, numbers=(9, 2)) == [derive_seed(7, "augment", 3, 9), 3570792032232511536]
    assert derive_seeds(7, numbers=range(1)) == [derive_seed(7, 0)]


@given(st.integers(0, 2**64), st.lists(st.integers(0, 2**40) | st.text("abc/", max_size=3), max_size=3))
def test_many_seeds_are_those_that_one_gets_one_by_one(seed, path):
    numbers = range(3, 30, 7)
    assert derive_seeds(seed, *path, numbers=numbers) == [derive_seed(seed, *path, number) for number in numbers]
