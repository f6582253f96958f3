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


@pytest.mark.parametrize("case", ["exact", "accumulated", "compiled", "lightning", "kinds", "kinds equal", "rounding"])
def test_what_keeps_the_ranks_together_is_no_error(ranks, case):
    for found in ranks:
        assert found[case][:3] == ["", "", 1 if case == "kinds equal" else 2]
    if case != "rounding":
        assert ranks[0][case][3] == ranks[1][case][3]


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("second optimizer", "critic.weight"),
        ("hook", "bias"),
        ("hook before the save", "bias"),
        ("criterion", "parameter 2 of the optimizer's group 0"),
        *((f"kinds {name}", name) for name in ("bf16", "c64", "last", "view", "count", "zero")),
    ],
)
def test_weights_that_differ_between_ranks_are_never_saved(ranks, case, name):
    assert ranks[0][case][1] == ranks[1][case][1]
    for found in ranks:
        kind, message, checkpoints, _ = found[case]
        assert kind == "RanksDifferError"
        assert f"{name} on rank 1 differs from rank 0 by up to" in message
        assert "e+308" not in message
        assert "a parameter of the loss function, which must be a part of the model" in message
        assert checkpoints == 0


def test_weights_that_differ_before_the_training_are_an_error_before_the_first_step(ranks):
    for found in ranks:
        kind, _, step = found["before train"]
        assert (kind, step) == ("RanksDifferError", 0)


def test_differences_of_rounding_are_a_warning(ranks):
    assert ranks[0]["output"].count("The ranks' weights differ by rounding: ") == 1
    assert "The ranks' weights differ by rounding: bias, by up to" in ranks[0]["output"]


@pytest.mark.parametrize("case", ["thawed", "thawed group", "thawed group, resumed", "frozen", "replaced"])
def test_what_a_hook_thaws_or_freezes_between_two_epochs_is_averaged_like_the_rest(ranks, case):
    for found in ranks:
        assert found[case][:2] == ["", ""]
    assert ranks[0][case][3] == ranks[1][case][3]
    assert ranks[0]["thawed group, resumed"][3] == ranks[0]["thawed group"][3]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("thawed in the epoch", "0.weight requires a gradient since the middle of an epoch."),
        ("frozen in the epoch", "2.bias does not require a gradient since the middle of an epoch."),
        ("thawed on one rank", "The ranks do not train the same parameters: 0.bias requires a gradient on rank 0"),
    ],
)
def test_what_is_thawed_or_frozen_too_late_or_on_one_rank_is_an_error(ranks, case, message):
    for found in ranks:
        assert found[case][0] == "ConfigurationError"
        assert message in found[case][1]
