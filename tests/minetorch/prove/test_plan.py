"""Which steps a run is killed at: the same for the same seed, spread over it, between two saves."""

import pytest

from minetorch.prove.plan import KINDS, draw_kills


def test_the_same_seed_draws_the_same_kills():
    drawn = [draw_kills({"a": 200}, 10, 5, seed, ranks=4) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("seed", range(5))
def test_kills_are_spread_and_come_between_two_saves_after_the_first(seed):
    kills = draw_kills({"a": 100}, 10, 4, seed, ranks=2)
    steps = [kill.step for kill in kills]
    assert all(10 < step < 100 and step % 10 for step in steps)
    assert steps == sorted(steps)
    assert [min(3, (step - 11) // 22) for step in steps] == [0, 1, 2, 3]  # one in each quarter
    assert [kill.what for kill in kills] == ["rank", "all", "notice", "rank"]
    assert {kill.rank for kill in kills} <= {0, 1}


def test_one_rank_and_another_number_of_ranks_have_kinds_of_their_own():
    assert [k.what for k in draw_kills({"a": 50}, 5, 3, 0, ranks=1)] == ["all", "notice", "all"]
    # The first must end the launch: a launcher's own restart keeps the number.
    assert draw_kills({"a": 50}, 5, 1, 0, ranks=2, moving=True)[0].what in KINDS["moving"][:2]


@pytest.mark.parametrize(("steps", "most"), [(1, 0), (2, 1), (3, 2), (8, 7)])
def test_a_short_run_is_killed_as_often_as_can_be(steps, most):
    kills = draw_kills({"a": steps}, 10, 99, 0, ranks=1)
    assert len({kill.step for kill in kills}) == len(kills) == most


def test_every_trainer_of_a_script_has_its_turn():
    kills = draw_kills({"a": 40, "b": 40}, 5, 4, 3, ranks=1)
    assert [kill.run for kill in kills] == ["a", "a", "b", "b"]
