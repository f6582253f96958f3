"""strategy="exact" on real worlds: every bit is the same at any number of workers."""

import json

import pytest

# The first test waits for four worlds; a busy machine may take its time over them.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CASES = ["mlp", "cnn", "stream", "batches", "bf16"]
WORLDS = [1, 2, 3, 4]
CHANGES = {4: 2, 1: 4, 3: 1}
"""A world, and the one whose unfinished runs it goes on with."""

BITS = ["weights", "optimizer", "figures", "progress"]


@pytest.fixture(scope="module")
def results(tmp_path_factory, launch):
    """What each rank of four worlds ended with, by world size; each world is started once for all tests here."""
    out = tmp_path_factory.mktemp("exact")
    for size, stop in ((2, 0), (4, 1), (1, 0), (3, -1)):
        launch(size, "elastic.py", out, CHANGES.get(size, "-"), stop)
    return {size: [json.loads((out / f"results_{size}_{r}.json").read_text()) for r in range(size)] for size in WORLDS}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", WORLDS)
def test_from_scratch(results, case, size):
    alone = results[1][0][case]["whole"]
    for rank in results[size]:
        assert {name: rank[case]["whole"][name] for name in BITS} == {name: alone[name] for name in BITS}
    assert results[size][0][case]["whole"]["curves"] == alone["curves"]
    assert sum(rank[case]["whole"]["samples"] for rank in results[size]) == alone["samples"] > 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("size", "before"), CHANGES.items())
def test_changed_amid_an_epoch(results, case, size, before):
    alone, begun = results[1][0][case]["whole"], results[before][0][case]["begun"]
    for rank in results[size]:
        gone_on = rank[case]["gone on"]
        assert gone_on["steps"] == [begun["steps"][1], alone["steps"][1]]
        assert alone["steps"][1] // 2 < gone_on["steps"][0] < alone["steps"][1]
        assert {name: gone_on[name] for name in BITS} == {name: alone[name] for name in BITS}
    assert results[size][0][case]["gone on"]["curves"] == alone["curves"]


def test_what_is_compared_is_not_nothing(results):
    """Each kind of training ends with bits of its own, and has drawn every iteration."""
    ends = [results[1][0][case]["whole"] for case in CASES]
    for name in BITS[:3]:
        assert len({json.dumps(end[name]) for end in ends}) == len(CASES)
    assert all(len(end["curves"]) > 2 * end["steps"][1] for end in ends)
