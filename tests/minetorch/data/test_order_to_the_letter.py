"""Orders and shares by their very figures: another version of Minetorch must go on with the same samples."""

import pytest

from minetorch.data.order import EpochPlan, Share, count_chunks, derive_seed, derive_seeds, share_of, split_evenly


def test_seeds_are_the_same_for_ever():
    """Were they others, no run of before could go on to the bit. Never change these."""
    assert derive_seed(0) == 4761921975702974394
    assert derive_seed(0, "order", 1) == 2961819992523135983
    assert derive_seed(7, "augment", 3, 2) == 3570792032232511536
    assert derive_seeds(7, "augment", 3, numbers=(9, 2)) == [derive_seed(7, "augment", 3, 9), 3570792032232511536]
    assert derive_seeds(7, numbers=range(1)) == [derive_seed(7, 0)]


def test_the_first_parts_get_one_more():
    assert [split_evenly(8, 3, part) for part in range(3)] == [range(3), range(3, 6), range(6, 8)]
    assert [split_evenly(2, 3, part) for part in range(3)] == [range(1), range(1, 2), range(2, 2)]


def test_how_many_chunks():
    assert [count_chunks(units, 4, drop_last=False) for units in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert [count_chunks(units, 4, drop_last=True) for units in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]


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
def test_what_is_no_iteration(index):
    with pytest.raises(IndexError, match=f"^{index}$"):
        EpochPlan("abcdefg", 4, 0, 2)[index]
