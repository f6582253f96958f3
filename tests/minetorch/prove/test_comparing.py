"""Where two records of a run part: the first moment, and of it the first thing in the order of cause and effect."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from minetorch.prove.causes import Evidence, cause_of
from minetorch.prove.comparing import compare, compare_states, greatest_difference, parted
from minetorch.prove.digests import of_data, of_tensor
from minetorch.prove.records import OBSERVED, Recording, Row, Start

NAMES = {"gradients": ["w", "b"], "tensors": ["w", "b"]}
AT_START = {"settings": [{"lr": "0.1"}], "tensors": "0000000a0000000b"}


def row(step, generation=1, rank=0, **changes):
    values = {
        "samples": step,
        "data": step,
        "generators": {"torch's": step, "Python's": 0},
        "loss": (1.0 / step).hex(),
        "gradients": f"{step:08x}{step:08x}",
        "settings": [{"lr": "0.1"}],
        "tensors": f"{step:08x}{step:08x}",
        **changes,
    }
    return Row(generation, rank, 1, step, step, values, NAMES)


def begun(step, generation, tensors=None):
    tensors = tensors or (f"{step:08x}{step:08x}" if step else AT_START["tensors"])
    return Row(generation, 0, int(step > 0), step, step, {**AT_START, "tensors": tensors}, NAMES)


def recording(*starts):
    """Each start: the step it goes on from, and its rows."""
    found = {
        number: {0: Start(begun(at, number) if isinstance(at, int) else at, 1, {}, rows, None)}
        for number, (at, rows) in enumerate(starts, 1)
    }
    return Recording("run", Path("run"), found)


def rows(first, last, generation=1):
    return [row(step, generation) for step in range(first, last + 1)]


REFERENCE = recording((0, rows(1, 10)))


def test_equal_runs_have_no_difference():
    killed = recording((0, rows(1, 6)), (4, rows(5, 10, 2)))
    comparison = compare(REFERENCE, killed)
    assert (comparison.difference, comparison.steps, comparison.repeated) == (None, 10, 2)


@pytest.mark.parametrize("what", OBSERVED)
def test_the_first_thing_of_the_first_step_is_named(what):
    changed = {
        "samples": 0,
        "data": 0,
        "loss": (9.0).hex(),
        "gradients": "0000000600000000",
        "settings": [{"lr": "0.2"}],
        "tensors": "0000000600000000",
    }
    later = {name: changed[name] for name in OBSERVED[OBSERVED.index(what) :]}
    second = [row(5, 2), row(6, 2, **later), row(7, 2, **changed)]
    difference = compare(REFERENCE, recording((0, rows(1, 6)), (4, second))).difference
    assert (difference.what, difference.step, difference.resumed_at, difference.equal_up_to) == (what, 6, 4, 5)
    shown = {"loss": ("0.16666666666666666", "9.0"), "settings": ("0.1", "0.2")}
    assert (difference.expected, difference.found) == shown.get(what, ("", ""))
    assert difference.name == {"gradients": "b", "tensors": "b", "settings": "lr"}.get(what, "")


def test_what_a_checkpoint_does_not_give_back_is_seen_before_the_first_step():
    killed = recording((0, rows(1, 6)), (begun(4, 2, "0000000400000000"), rows(5, 10, 2)))
    difference = compare(REFERENCE, killed).difference
    assert (difference.at_start, difference.name, difference.step, difference.resumed_at) == (True, "b", 4, 4)


def test_generators_alone_are_no_difference_but_a_clue():
    drawn = {"generators": {"torch's": 0, "Python's": 0}}
    assert compare(REFERENCE, recording((0, [row(1, **drawn), *rows(2, 10)]))).difference is None
    difference = compare(REFERENCE, recording((0, [row(1, **drawn, loss=(9.0).hex())]))).difference
    assert (difference.what, difference.generators) == ("loss", ("torch's",))
    kind, _ = cause_of(dataclasses.replace(difference, resumed_at=0), Evidence(deterministic=True))
    assert kind == "random numbers that a restart draws again, or does not"


def test_on_another_number_of_ranks_only_what_all_have_in_common_counts():
    second = [row(step, 2, samples=0, data=0, loss=(9.0).hex()) for step in range(5, 11)]
    killed = recording((0, rows(1, 6)), (4, second))
    assert compare(REFERENCE, killed).difference.what == "samples"
    assert compare(REFERENCE, killed, every_rank=False).difference is None


def test_every_kind_of_difference_has_a_cause_and_an_advice():
    difference = compare(REFERENCE, recording((0, [row(1, loss=(9.0).hex())]))).difference
    for what in OBSERVED:
        for deterministic in (True, False):
            for device in ("cpu", "cuda"):
                one = dataclasses.replace(difference, what=what)
                kind, advice = cause_of(one, Evidence(deterministic=deterministic, device=device))
                assert kind
                assert advice.endswith((".", "trainer.progress."))
    loss = dataclasses.replace(difference, what="gradients")
    assert cause_of(loss, Evidence(deterministic=False, device="cuda"))[0] == "a non-deterministic kernel"


def test_ranks_that_train_apart_are_a_cause_of_their_own():
    def ranks(*tensors):
        facts = {"parameters": ["w"]}
        starts = {
            rank: Start(begun(0, 1), len(tensors), facts, [row(1, rank=rank), row(2, rank=rank, tensors=own)], None)
            for rank, own in enumerate(tensors)
        }
        return Recording("run", Path("run"), {1: starts})

    same, other_weight, other_buffer = "0000000100000002", "0000000300000002", "0000000100000003"
    assert parted(ranks(same)) is None
    assert parted(ranks(same, same, other_buffer)) is None
    assert parted(ranks(same, same, other_weight)) == "w"
    difference = compare(REFERENCE, recording((0, [row(1, loss="0x1.8p+0")]))).difference
    kind, advice = cause_of(difference, Evidence(deterministic=True, world_size=2, parted="w"))
    assert kind == "ranks that train apart"
    assert "w is not the same on all ranks" in advice


def test_states_are_compared_by_their_bits():
    state = {"a": torch.tensor([0.0, math.nan]), "b": [1, {"c": 0.5}], "d": None}
    assert not list(compare_states(state, {"a": state["a"].clone(), "b": [1, {"c": 0.5}], "d": None}))
    other = {"a": torch.tensor([-0.0, math.nan]), "b": [1, {"c": 0.25}], "e": 1}
    assert [one.path for one in compare_states(state, other)] == ["a", "b[1].c", "d", "e"]


def test_digests_tell_bits_types_and_shapes_apart():
    zeros = torch.zeros(4)
    others = [-zeros, zeros.double(), zeros.reshape(2, 2), zeros[:3], torch.zeros(4, dtype=torch.bfloat16)]
    assert len({of_tensor(tensor) for tensor in (zeros, *others)}) == 6
    assert of_tensor(torch.arange(6).reshape(2, 3).t()) == of_tensor(torch.arange(6).reshape(2, 3).t().contiguous())
    assert of_data({"x": [zeros, "a"]}) == of_data({"x": [zeros.clone(), "a"]}) != of_data({"x": [zeros, "b"]})


def test_the_greatest_difference_is_relative_to_the_greatest_entry():
    old, new = {"w": torch.tensor([1.0, 100.0]), "n": torch.tensor(3)}, {"w": torch.tensor([2.0, 100.0])}
    assert greatest_difference(old, new | {"n": torch.tensor(4)}) == pytest.approx(0.01)
