"""Ranks that do not have the same data say so, all alike, and none waits for another that has failed."""

import json

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, launch):
    """What each of two workers met in `worlds/same_data.py`, which is started once for all tests here."""
    out = tmp_path_factory.mktemp("same_data")
    launch(2, "same_data.py", out)
    return [json.loads((out / f"rank_{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("lengths", "train_dataloader is not the same on every rank: the length of its dataset is 20 on rank 0, 12 on"),
        ("val lengths", "val_dataloader is not the same on every rank: the length of its dataset is 20 on rank 0, 12"),
        ("val on one rank", "val_dataloader is not the same on every rank"),
        ("batch size", "its batch_size is 4 on rank 0, 5 on rank 1"),
        ("sampler", "the epoch begins with [0, 2, 4, …] on rank 0, [1, 3, 5, …] on rank 1"),
        ("batches", "the epoch begins with [[0], [2], [4], …] on rank 0, [[1], [3], [5], …] on rank 1"),
        ("random split", "train_dataloader does not give the same order on every rank"),
        ("val sampler", "val_dataloader does not give the same order on every rank"),
        ("stream", "The stream of train_dataloader does not give the same samples on every rank"),
        ("shuffled stream", "The stream of train_dataloader does not give the same samples on every rank"),
        ("uneven stream", "The stream of train_dataloader does not give the same samples on every rank"),
        ("empty stream", "The stream of train_dataloader does not give the same samples on every rank"),
        ("val stream", "The stream of val_dataloader does not give the same samples on every rank"),
        ("last batch of a stream", "train_dataloader does not have the same length on every rank: 10 on rank 0, 12 on"),
        ("end of a val stream", "val_dataloader does not have the same length on every rank: 10 on rank 0, 20 on"),
    ],
)
def test_data_that_differs_is_the_same_error_on_every_rank(ranks, case, message):
    assert ranks[0][case] == ranks[1][case]
    kind, said = ranks[0][case]
    assert kind == "ConfigurationError"
    assert message in said
    assert "Give every rank all of the data, not split by rank; the Trainer shares it out over the ranks." in said


@pytest.mark.parametrize(
    ("case", "length"),
    [
        ("same", 20),
        ("same stream", 20),
        ("same stream of workers", 10),
        ("augmented stream", 20),
        ("augmented stream of workers", 10),
    ],
)
def test_data_that_is_the_same_is_shared_out(ranks, case, length):
    outcomes = [found[case] for found in ranks]
    assert [kind for kind, _ in outcomes] == ["fine", "fine"]
    numbers = sorted(number for _, own in outcomes for number in own)
    assert len(numbers) == length
    assert set(numbers) == set(range(20 if length == 20 else 5))


def test_a_rank_whose_sampler_fails_does_not_leave_the_other_waiting(ranks):
    assert ranks[1]["failing sampler"] == ["ValueError", "no keys here"]
    kind, said = ranks[0]["failing sampler"]
    assert kind == "RemoteError"
    assert said == "Rank 1 failed, so rank 0 stops too: ValueError: no keys here"


def test_a_stream_that_ends_earlier_on_a_rank_is_an_error_there_and_no_crash(ranks):
    kind, said = ranks[1]["end of a stream"]
    assert kind == "ConfigurationError"
    assert "The stream of train_dataloader ended on rank 1 after 8 samples of the epoch, but 1 s later not on" in said
    assert ranks[0]["end of a stream"][0] != "fine"
