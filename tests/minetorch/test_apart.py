"""Two ranks that train apart: each way is an error on both, and leaves no checkpoint."""

import json

import pytest


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, launch):
    """What each of two workers found in `worlds/apart.py`, which is started once for all tests here."""
    out = tmp_path_factory.mktemp("apart")
    output = launch(2, "apart.py", out)
    found = [json.loads((out / f"rank_{rank}.json").read_text()) for rank in (0, 1)]
    found[0]["output"] = output
    return found


@pytest.mark.parametrize("case", ["own name", "unwrapped", "accumulated wrongly"])
def test_a_loss_that_does_not_go_through_trainer_model_is_an_error_at_the_first_step(ranks, case):
    for found in ranks:
        kind, message, checkpoints, _ = found[case]
        assert kind == "ConfigurationError"
        assert "loss_func did not call trainer.model. With 2 workers" in message
        assert checkpoints == 0
    assert ranks[0][case][3] == ranks[1][case][3], "no step was taken"


@pytest.mark.parametrize("case", ["exact", "accumulated", "compiled", "lightning", "kinds", "rounding"])
def test_what_keeps_the_ranks_together_is_no_error(ranks, case):
    for found in ranks:
        assert found[case][:3] == ["", "", 2]
    if case != "rounding":
        assert ranks[0][case][3] == ranks[1][case][3]


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("second optimizer", "critic.weight"),
        ("hook", "bias"),
        ("hook before the save", "bias"),
        ("criterion", "parameter 2 of the optimizer's group 0"),
        *((f"kinds {name}", name) for name in ("bf16", "c64", "last", "view", "count")),
    ],
)
def test_weights_that_differ_between_ranks_are_never_saved(ranks, case, name):
    assert ranks[0][case][1] == ranks[1][case][1]
    for found in ranks:
        kind, message, checkpoints, _ = found[case]
        assert kind == "RanksDifferError"
        assert f"{name} on rank 1 differs from rank 0 by up to" in message
        assert checkpoints == 0


def test_weights_that_differ_before_the_training_are_an_error_before_the_first_step(ranks):
    for found in ranks:
        kind, _, step = found["before train"]
        assert (kind, step) == ("RanksDifferError", 0)


def test_differences_of_rounding_are_a_warning(ranks):
    assert ranks[0]["output"].count("The ranks' weights differ by rounding: bias, by up to") == 1
