"""What a proof came to, in words: each sentence of the report, to the letter."""

import json
from dataclasses import replace

import pytest

from minetorch.prove.comparing import Comparison, Difference, EndDifference
from minetorch.prove.verdict import End, Mended, RunProof, Samples, Verdict

KILL = Mended(step=24, what="rank", rank=1, reached=25, went_on_from=23, ranks_before=2, ranks_after=2)
NONE_LOST = Mended(step=1066, what="notice", rank=0, reached=1066, went_on_from=1066, ranks_before=2, ranks_after=2)
SAMPLES = Samples(epochs=3, count=4311, problems=(), first_other_epoch=None)
END = End(tensors=37, differences=(), figures=(), relative=0.0)
EXACT = RunProof(
    "default", Comparison(69, 3, None), None, None, SAMPLES, END, to_the_bit=True, mended=(KILL, NONE_LOST)
)
LATER = Difference(
    "loss", "", at_start=False, generation=2, rank=1, epoch=2, iteration=4, step=27, resumed_at=23, equal_up_to=26
)


def verdict(*runs, kills=2, then_nproc=None):
    return Verdict("train.py", 2, then_nproc, seed=7, kills=kills, asked=2, runs=runs)


def last_words(*runs, **how):
    return verdict(*runs, **how).text().partition("\n\n")[2]


def differing(difference, **changes):
    return replace(EXACT, comparison=Comparison(26, 3, difference), **changes)


def test_an_exact_run():
    assert verdict(EXACT).text().splitlines() == [
        "               step 24     SIGKILL to rank 1  went on from 23, 2 steps done again",
        "               step 1,066  SIGTERM to rank 0  went on from 1,066, none lost",
        "samples        4,311 in 3 epochs: each in its turn, none lost, none twice",
        "steps          all 69 equal: data, loss, gradients, settings, and every tensor after each",
        "end            37 tensors of the last checkpoints are equal, bit for bit",
        "",
        "EXACT: killed twice, and not one bit differs.",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "step 24  SIGKILL to rank 1  went on from 23, 2 steps done again"),
        ({"reached": 24}, "step 24  SIGKILL to rank 1  went on from 23, 1 step done again"),
        ({"what": "all"}, "step 24  SIGKILL to all ranks  went on from 23, 2 steps done again"),
        (
            {"what": "all", "rank": 0, "ranks_before": 1, "ranks_after": 3, "reached": 23},
            "step 24  SIGKILL to rank 0  went on from 23 on 3 ranks, none lost",
        ),
        ({"ranks_after": 1}, "step 24  SIGKILL to rank 1  went on from 23 on 1 rank, 2 steps done again"),
    ],
)
def test_each_kill_is_told(changes, said):
    text = verdict(replace(EXACT, mended=[replace(KILL, **changes)]), kills=1).text()
    assert text.splitlines()[0].strip() == said
    assert text.endswith("EXACT: killed once, and not one bit differs.")


def test_figures_of_the_users_own_may_differ():
    text = verdict(replace(EXACT, end=replace(END, figures=["metrics", "drawer"])), kills=5).text()
    assert "               (not the training's own, and different: metrics, drawer)\n" in text
    assert text.endswith("EXACT: killed 5 times, and not one bit differs.")


@pytest.mark.parametrize(
    ("relative", "more"), [(1e-5, ""), (0.2, "; batches, dropout or BatchNorm depend on the number of ranks")]
)
def test_on_another_number_of_ranks(relative, more):
    end = replace(END, differences=[EndDifference("state_dict.w", "", "")], relative=relative)
    run = replace(EXACT, comparison=None, to_the_bit=False, end=end)
    text = verdict(run, then_nproc=3).text()
    assert f"end            the weights are up to {relative:.1e} away, relative to each tensor's greatest{more}" in text
    assert text.endswith(
        "EXACT TO THE SAMPLE: killed twice, continued on 3 ranks; every sample in its turn, none lost, none twice."
    )
    lost = replace(run, samples=replace(SAMPLES, problems=["7 are lost.", "2 came twice."]))
    assert "samples        7 are lost. 2 came twice.\n" in verdict(lost, then_nproc=3).text()
    assert last_words(lost) == "DIFFERS: the samples are not those of the uninterrupted run."


def test_two_runs_of_one_script_are_told_apart():
    other = replace(EXACT, name="finetune", samples=replace(SAMPLES, first_other_epoch=2))
    text = verdict(EXACT, other).text()
    assert text.startswith("default:\n")
    assert "\nfinetune:\n" in text
    assert "samples        others, or in another order, from epoch 2 on\n" in text
    assert text.endswith("DIFFERS finetune: the samples are not those of the uninterrupted run.")


def test_only_the_last_checkpoint_differs():
    end = replace(END, differences=[EndDifference("statable.clock", "1", "2"), EndDifference("state_dict.w", "", "")])
    text = verdict(replace(EXACT, end=end)).text()
    assert "end            2 values of the last checkpoints differ; the first: statable.clock (1 is 2)\n" in text
    assert last_words(replace(EXACT, end=end)).replace("\n  ", " ") == (
        "DIFFERS: each step is equal, but not the last checkpoint: what differs there is changed after the last step, "
        "or kept in `statable` or a plugin and not by the training alone."
    )
    one = replace(END, differences=[EndDifference("state_dict.w", "", "4.8e-06 away")])
    assert (
        "1 value of the last checkpoints differs; the first: state_dict.w (4.8e-06 away)\n"
        in verdict(replace(EXACT, end=one)).text()
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "first at step 27 (epoch 2, iteration 4), 4 steps after going on from step 23, in the loss of rank 1."),
        (
            {"step": 24, "equal_up_to": 23, "expected": "0.5", "found": "0.6"},
            "first at step 24 (epoch 2, iteration 4), right after going on from step 23, in the loss of rank 1: 0.5 "
            "became 0.6.",
        ),
        (
            {"resumed_at": None, "what": "data"},
            "first at step 27 (epoch 2, iteration 4), before any kill, in the data of rank 1, of the same samples.",
        ),
        (
            {"what": "samples", "expected": "4 5", "found": "5 4"},
            "first at step 27 (epoch 2, iteration 4), 4 steps after going on from step 23, in the samples of rank 1: "
            "4 5 became 5 4.",
        ),
        (
            {"what": "settings", "name": "lr", "expected": "0.1", "found": "0.2"},
            "first at step 27 (epoch 2, iteration 4), 4 steps after going on from step 23, in the optimizer's lr: 0.1 "
            "became 0.2.",
        ),
        (
            {"what": "gradients", "name": "0.weight", "equal_up_to": 24},
            "first in steps 25 to 27, 4 steps after going on from step 23, in the gradient of 0.weight.",
        ),
        (
            {"what": "tensors", "name": "0.weight", "others": 3},
            "first at step 27 (epoch 2, iteration 4), 4 steps after going on from step 23, in 0.weight and 3 more.",
        ),
        (
            {"what": "tensors", "name": "0.weight", "at_start": True, "step": 23},
            "as soon as step 23 was loaded, in 0.weight.",
        ),
        (
            {"what": "tensors", "name": "0.weight", "at_start": True, "resumed_at": None},
            "before the first step, in 0.weight.",
        ),
    ],
)
def test_the_first_difference_is_named(changes, said):
    assert last_words(differing(replace(LATER, **changes))).replace("\n  ", " ") == f"DIFFERS: {said}"


def test_what_is_known_of_the_reason_is_said():
    run = differing(LATER, deterministic=False, cause=("the clock", "Leave it out of the loss."))
    assert last_words(run).splitlines()[-2:] == [
        "Two runs without a kill differ, too: the script is not deterministic.",
        "Likely cause: the clock. Leave it out of the loss.",
    ]
    assert last_words(differing(LATER, deterministic=True)).splitlines()[-2:] == [
        "A second uninterrupted run was equal: the script is deterministic, but loses something by a",
        "  restart.",
    ]
    none = differing(replace(LATER, equal_up_to=0))
    assert "steps          equal up to step 26\n" in verdict(differing(LATER)).text()
    assert "steps          not one is equal\n" in verdict(none).text()


def test_the_same_for_programs():
    facts = json.loads(json.dumps(verdict(EXACT, differing(LATER, cause=("the clock", "Leave it out."))).facts()))
    assert (facts["verdict"], facts["kills"], facts["seed"]) == ("differs", 2, 7)
    assert [run["exact"] for run in facts["runs"]] == [True, False]
    assert [run["cause"] for run in facts["runs"]] == [None, {"kind": "the clock", "advice": "Leave it out."}]
    assert facts["runs"][1]["comparison"]["difference"]["step"] == 27
    assert verdict(EXACT).facts()["verdict"] == "exact"
