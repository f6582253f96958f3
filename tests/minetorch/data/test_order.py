"""The order of samples, without processes or data."""

import itertools

import pytest

from minetorch.data.order import EpochPlan, derive_seed, share_of, split_evenly

SIZES = [0, 1, 2, 3, 7, 8, 29, 64, 65]
WORLDS = [1, 2, 3, 4, 7]


@pytest.mark.parametrize(("length", "parts"), list(itertools.product(SIZES, WORLDS)))
def test_an_even_split_covers_everything_once_and_is_even(length, parts):
    split = [split_evenly(length, parts, part) for part in range(parts)]
    assert [index for part in split for index in part] == list(range(length))
    assert max(map(len, split)) - min(map(len, split)) <= 1


@pytest.mark.parametrize(("length", "world"), list(itertools.product(SIZES[1:], WORLDS)))
def test_shares_count_every_unit_once_and_no_rank_is_left_without(length, world):
    shares = [share_of(range(length), rank, world) for rank in range(world)]
    assert all(share.units for share in shares), "every rank must take part in the gradients' sum"
    counted = [unit for share in shares for unit in share.units[: share.counted]]
    assert counted == list(range(length))
    assert {share.total for share in shares} == {length}


@pytest.mark.parametrize(("length", "world", "chunk"), list(itertools.product(SIZES, WORLDS, [1, 8, 12])))
def test_an_epoch_is_seen_once_by_all_ranks_together(length, world, chunk):
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


def test_indexing_past_the_end_is_an_error():
    with pytest.raises(IndexError):
        EpochPlan(range(8), 8, 0, 1)[1]


def test_seeds_of_neighbouring_epochs_and_purposes_are_unrelated():
    seeds = {derive_seed(seed, purpose, epoch) for seed in range(20) for purpose in "ab" for epoch in range(20)}
    assert len(seeds) == 20 * 2 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "order", 1) == derive_seed(0, "order", 1)
