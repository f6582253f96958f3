"""The Trainer on several real workers."""

import json

import pytest
import torch


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, launch):
    """What each of two workers found in `worlds/together.py`, which is started once for all tests here."""
    out = tmp_path_factory.mktemp("together")
    launch(2, "together.py", out)
    return [json.loads((out / f"rank_{rank}.json").read_text()) for rank in (0, 1)]


def test_hooks_run_on_every_rank_unless_main_only(ranks):
    assert [found["hook calls"] for found in ranks] == [["all", "main"] * 2, ["all"] * 2]


def test_a_main_only_hook_sees_the_whole_data_and_others_their_share(ranks):
    main, other = (found["looked at"] for found in ranks)
    assert main["alone"] == sorted(main["together"] + other["together"])
    assert (len(main["alone"]), len(main["together"]), len(other["together"])) == (5, 3, 2)
    assert main["batches"] == 11
    assert "alone" not in other


def test_only_rank_0_draws(ranks):
    assert [found["curves"] for found in ranks] == [["rank", "train", "train", "val", "val"], []]


def test_metrics_and_weights_are_the_same_on_every_rank(ranks):
    assert ranks[0]["metrics"] == ranks[1]["metrics"]
    assert ranks[0]["weights"] == ranks[1]["weights"]


def test_reduce_and_broadcast(ranks):
    for found in ranks:
        assert found["reduce"] == [0.5, 1.0, 0.0, 1.0]
        assert found["reduce tensor"] == [0.5, 2.0]
        assert found["broadcast"] == "from 0"


def test_a_state_that_rank_0_reads_arrives_as_it_is(ranks):
    for found in ranks:
        assert found["read once"] == dict.fromkeys(found["read once"], True)


def test_a_resumed_state_is_the_same_on_every_rank(ranks):
    assert ranks[0]["resumed state"] == ranks[1]["resumed state"]
    assert [found["resumed after"] for found in ranks] == [5, 5]


@pytest.mark.slow
def test_resuming_takes_no_memory_for_the_payload_on_other_ranks(tmp_path, launch):
    launch(4, "resumed_memory.py", tmp_path, "save")
    launch(4, "resumed_memory.py", tmp_path, "resume")
    payload = max(path.stat().st_size for path in tmp_path.rglob("g*.pth.tar"))
    assert payload > 90e6
    for rank in (1, 2, 3):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) < payload / 2


def test_a_collective_on_one_rank_is_an_error_that_says_so(ranks):
    messages = ranks[0]["refused"]
    assert len(messages) == 5
    for message in messages:
        assert "a hook runs on rank 0 only (@minetorch.main_only), but calls the collective" in message
    assert ranks[0]["forward on one rank"] == [2, 1]


def test_an_uneven_validation_ends_and_ranks_have_the_same_statistics(ranks):
    assert [found["validated"] for found in ranks] == [8, 6]
    assert ranks[0]["statistics"] == ranks[1]["statistics"]


def test_an_error_of_rank_0_reaches_the_others(ranks):
    assert ranks[0]["error"] == ["StorageError", "the disk is full"]
    assert ranks[1]["error"][0] == "RemoteError"
    assert "StorageError: the disk is full" in ranks[1]["error"][1]


def test_a_save_that_fails_beside_the_training_reaches_every_rank(ranks):
    assert [found["failed save"][0] for found in ranks] == ["StorageError", "RemoteError"]
    assert all("models" in found["failed save"][1] for found in ranks)


def test_one_rank_stops_all_at_the_same_step_and_the_run_goes_on_from_there(ranks):
    epoch, iteration = ranks[0]["stopped at"]
    assert epoch == 1
    assert 2 <= iteration <= 6
    assert ranks[1]["stopped at"] == ranks[0]["resumed at"] == ranks[1]["resumed at"] == [epoch, iteration]
    assert ranks[0]["resumed weights"] == ranks[0]["weights"]
    assert [found["graceful"] for found in ranks] == [1, 1]


def test_accumulation(ranks):
    """21 samples in batches of 2 on 2 ranks are 6 iterations, so 2 steps of an epoch."""
    assert ranks[0]["accumulated steps"] == 4
    assert ranks[0]["accumulated weights"] == ranks[1]["accumulated weights"]


def test_parameters_that_the_loss_does_not_use_are_named(ranks):
    for found in ranks:
        assert "does not depend on these parameters: spare.weight, spare.bias. With several workers" in found["unused"]


def test_a_killed_worker_costs_nothing_but_time(launch, tmp_path):
    """Killed amid an epoch and started again by the launcher, the run ends as one that was left alone."""
    ends = {}
    for way in ("kill", "leave alone"):
        output = launch(2, "crash.py", tmp_path / way, way, options=["--max-restarts", "1"])
        assert ("rank 1 failed: killed by SIGKILL" in output) == (way == "kill")
        assert ("epoch 2, iteration 4, step" in output) == (way == "kill")
        ends[way] = torch.load(tmp_path / way / "runs/default/models/latest.pth.tar", weights_only=True)
    killed, whole = ends.values()
    assert killed["progress"] == whole["progress"]
    assert killed["metrics"] == whole["metrics"]
    for name, value in whole["state_dict"].items():
        assert torch.equal(killed["state_dict"][name], value)
