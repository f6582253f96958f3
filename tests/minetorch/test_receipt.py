"""What is known of the start before, by whom, and how it is said."""

import pytest

from minetorch.checkpoint.claim import Claim, Launch, Process
from minetorch.checkpoint.manifest import Manifest
from minetorch.checkpoint.names import CheckpointName
from minetorch.resumption.history import Start, duration
from minetorch.resumption.report import Past, describe, look_back

PROCESS = Process("node1", 42, "100", "boot")
TOLD = {"MINETORCH_LAST_STEP": "130", "MINETORCH_LAST_TIME": "1500.5"}


def start(**changes):
    values = {
        "time": 2000.0, "host": "node1", "world_size": 2, "generation": 2, "checkpoint": "g0001.pth.tar", "epoch": 1,
        "step": 100, "steps_lost": None, "down_s": None, "load_s": 0.25, "ended": None,
    }  # fmt: skip
    return Start(**{**values, **changes})


def claim(generation=1, began=0, **changes):
    origin = None if began is None else vars(start(step=began))
    return Claim(generation, PROCESS, Launch(), 1000.0, **{"seen": 1200.0, "step": 120, "start": origin, **changes})


@pytest.mark.parametrize(
    ("claims", "environ", "past"),
    [
        ([], {}, Past()),
        ([claim(ended=True, how="finished")], {}, Past(120, True, 1200.0, "finished")),
        ([claim(ended=True, how="failed")], {}, Past(120, True, 1200.0, "failed")),
        ([claim()], {}, Past(120, False, 1200.0, "killed")),
        ([claim()], TOLD, Past(130, True, 1500.5, "killed")),
        ([claim(ended=True, how="failed")], TOLD, Past(130, True, 1500.5, "failed")),
        # Nothing shows that it has trained at all; a notebook's Trainer may just be there.
        ([claim(began=120)], {}, Past(120, False, 1200.0, None)),
        ([claim(ended=True, how="")], {}, Past(120, True, 1200.0, None)),
        # Of a Minetorch that did not write this down.
        ([claim(seen=0.0, step=None, began=None)], {}, Past(None, False, 1000.0, None)),
        # The newest died before it had read anything: what was lost is what the one before it had lost.
        ([claim(1, ended=True, how="failed"), claim(2, step=None, began=None, seen=1300.0)], {},
         Past(120, True, 1300.0, None)),
    ],
)  # fmt: skip
def test_whoever_knows_most_of_the_start_before_is_believed(claims, environ, past):
    assert look_back(claims, [], environ) == past


def test_checkpoints_tell_what_signs_of_life_came_too_late_for():
    name = CheckpointName(1, 3, 140, "abcdef")
    saved = Manifest(str(name), 1, 3, 140, 1, False, 7, 2, name.payload, 5, "crc32:00000000", {}, {}, 1700.0)
    assert look_back([claim()], [saved], {}) == Past(140, False, 1700.0, "killed")
    assert look_back([claim(began=120)], [saved], {}).ended == "killed"
    assert look_back([], [saved], {}) == Past(140, False, 1700.0)
    assert look_back([claim(2)], [saved], {}).step == 120


@pytest.mark.parametrize(
    ("past", "lost"),
    [
        (Past(120, True), 20),
        (Past(120, False), 20),
        (Past(100, True), 0),
        (Past(90, True), 0),
        (Past(100, False), None),
        (Past(), None),
    ],
)
def test_steps_lost(past, lost):
    assert past.steps_lost(100) == lost


@pytest.mark.parametrize(
    ("past", "down_s", "text"),
    [
        (Past(120, True, 1990.0, "killed"), 10.0,
         "20 steps lost, the previous start was killed, down for 10.0 s, "
         "loaded in 0.25 s"),
        (Past(1200, False, None, "failed"), None,
         "at least 1,100 steps lost, the previous start had failed, loaded in 0.25 s"),
        (Past(101, True), None, "1 step lost, loaded in 0.25 s"),
        (Past(100, True, None, "stopped early"), 7200.0,
         "no step lost, the previous start had stopped early, down for 2.0 h, "
         "loaded in 0.25 s"),
        (Past(), None, "steps lost: unknown, loaded in 0.25 s"),
    ],
)  # fmt: skip
def test_the_receipt_in_words(past, down_s, text):
    assert describe(start(steps_lost=past.steps_lost(100), down_s=down_s), past) == text


def test_without_a_checkpoint_all_is_lost():
    past = Past(7, True, 1999.0, "killed")
    scratch = start(checkpoint=None, step=0, steps_lost=past.steps_lost(0), down_s=1.0)
    assert describe(scratch, past) == "7 steps lost, the previous start was killed, down for 1.0 s"


def test_a_finished_run_that_is_extended_was_not_down():
    past = Past(100, True, 0.0, "finished")
    assert "down" not in describe(start(steps_lost=0, down_s=25.6), past)


def test_durations():
    assert [duration(s) for s in (0.04, 99, 100, 5999, 6000, 172_800)] == [
        "0.0 s", "99.0 s", "2 min", "100 min", "1.7 h", "2.0 d"
    ]  # fmt: skip
