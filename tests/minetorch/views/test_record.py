"""What a run is at and what its starts came to, from whatever tells of it."""

import os
import time

import pytest

from minetorch.checkpoint.claim import Claim, Launch, Process
from minetorch.errors import ConfigurationError
from minetorch.resumption.history import Start
from minetorch.views.names import labels
from minetorch.views.record import Record, episodes, state_of

PROCESS = Process("node1", 42, "100", "boot")


def start(generation, **changes):
    values = {
        "time": 1000.0 * generation, "host": "node1", "world_size": 2, "generation": generation, "checkpoint": None,
        "epoch": 1, "step": 100, "steps_lost": 5, "down_s": None, "load_s": 0.25, "ended": None,
    }  # fmt: skip
    return Start(**{**values, **changes})


def claim(generation, **changes):
    return Claim(generation, PROCESS, Launch(), 1000.0 * generation, **{"seen": 1000.0 * generation + 500, **changes})


@pytest.mark.parametrize(
    ("writer", "alive", "state"),
    [
        (claim(1), True, "running"),
        (claim(1), False, "killed"),
        (claim(1, ended=True, how="finished"), False, "finished"),
        (claim(1, ended=True, how="stopped early"), False, "stopped"),
        (claim(1, ended=True, how="interrupted"), False, "stopped"),
        (claim(1, ended=True, how="failed"), False, "failed"),
        (claim(1, ended=True), False, "stopped"),
        (claim(1, ended=True, how="of the future"), False, "stopped"),
        (None, False, "unknown"),
        (None, True, "running"),
    ],
)
def test_the_newest_start_tells_what_a_run_is_at(writer, alive, state):
    assert state_of(writer, alive) == state


def test_starts_are_told_by_claims_and_where_there_are_none_by_the_checkpoint():
    claims = {2: claim(2, step=140, start=vars(start(2, ended="killed"))), 3: claim(3, ended=True, how="finished")}
    first, second, third = episodes(claims, [start(1)], [], is_alive=False)
    assert (first.state, first.how, first.host, first.last_step) == ("killed", "killed", "node1", None)
    assert (second.state, second.last_step, second.last_seen) == ("unknown", 140, 2500.0)
    assert (third.state, third.start) == ("finished", None)
    assert episodes({}, [start(1), start(2, ended="failed")], [], is_alive=True)[1].state == "running"
    assert episodes({}, [], [], is_alive=False) == []


def test_a_graph_that_is_not_there_lists_those_that_are(plans):
    record = Record.open(plans / "plan-a", now=time.time())
    with pytest.raises(ConfigurationError, match=r"There is no graph 'los'. Did you mean 'loss'"):
        record.graph("los")
    assert record.state == "finished"
    assert record.newest.settings["optimizer.lr"] == 0.05
    assert record.newest.settings["model.parameters"] == 4
    assert "Ended at step 6. Best: " in record.log_tail()[-1]


def test_what_could_be_a_secret_is_not_among_the_settings(plans):
    settings = Record.open(plans / "plan-a", now=0.0).newest.settings
    assert {"max_epochs", "optimizer.betas", "batch_size", "samples", "model"} <= set(settings)
    assert not {"resume", "code", "alchemistic_directory", "storage_options"} & set(settings)
    assert not any(os.sep in str(value) for value in settings.values())


@pytest.mark.parametrize(
    ("urls", "short"),
    [
        (["/a/plan-a", "s3://b/plan-b/"], ["plan-a", "plan-b"]),
        (["/a/plan", "s3://b/plan"], ["a/plan", "b/plan"]),
        (["/x/plan", "/x/plan"], ["/x/plan (1)", "/x/plan (2)"]),
        ([], []),
    ],
)
def test_names_are_as_short_as_tells_runs_apart(urls, short):
    assert labels(urls) == short


def test_curves_are_read_without_any_payload(plans):
    before = Record.open(plans / "plan-a", now=0.0).drawn
    for payload in (plans / "plan-a" / "models").glob("g0*.pth.tar"):
        payload.unlink()
    after = Record.open(plans / "plan-a", now=0.0).drawn
    assert after.manifest == before.manifest
    assert {name: graph.points for name, graph in after.graphs.items()} == {
        name: graph.points for name, graph in before.graphs.items()
    }
    assert list(after.history) == list(before.history)
    assert after.history
