"""The starts of a run: in checkpoints, in claims, and in what `minetorch show` prints."""

import json
import re
import time
from dataclasses import asdict, replace

import pytest
import torch

import minetorch
from minetorch import StoppedEarly
from minetorch.checkpoint import Store
from minetorch.checkpoint.claim import claim_file
from minetorch.cli import main
from minetorch.distributed.signals import NOTICES
from minetorch.resumption.history import NEWEST, History, Start, down_text, lost_text

FIRST = Start(1.0, "node1", 2, 1, None, 0, 0, None, None, 0.1, None)


def test_only_the_first_and_the_newest_are_kept():
    history = History()
    for number in range(1, NEWEST + 500):
        history.add([replace(FIRST, generation=number)])
    generations = [start.generation for start in history.starts]
    assert generations == [1, *range(500, NEWEST + 500)]
    again = History()
    again.load_state_dict(history.state_dict())
    assert again.starts == history.starts
    assert len(json.dumps(history.state_dict())) < 300 * len(generations)


def test_what_is_not_a_start_is_passed_over():
    history = History()
    history.load_state_dict([{"time": 1.0}, asdict(FIRST), {**asdict(FIRST), "of": "a later version"}])
    assert history.starts == (FIRST, FIRST)


@pytest.mark.parametrize(
    ("changes", "lost", "down"),
    [
        ({}, "-", "-"),
        ({"generation": 2, "ended": "killed"}, "?", "?"),
        ({"generation": 2, "ended": "killed", "steps_lost": 1200, "down_s": 25.6}, "1,200", "25.6 s"),
        ({"generation": 2, "ended": "finished", "steps_lost": 0, "down_s": 25.6}, "0", "-"),
    ],
    ids=["first", "not known", "known", "extended"],
)
def test_a_start_says_what_it_cost_only_where_something_was_lost(changes, lost, down):
    start = replace(FIRST, **changes)
    assert (lost_text(start), down_text(start)) == (lost, down)


def fail_at(step):
    def hook(trainer):
        if trainer.progress.step == step:
            raise ValueError("of its own doing")

    return {"after_train_iteration_end": hook}


def notice_at(step):
    def hook(trainer):
        if trainer.progress.step == step:
            NOTICES.signum = 15

    return {"after_train_iteration_end": hook}


@pytest.fixture
def lives(make_trainer, tmp_path):
    """A run that failed before its first checkpoint, failed, stopped early and finished; its Trainers' histories."""
    histories = []
    for hooks, error in (
        (fail_at(2), ValueError),
        (fail_at(7), ValueError),
        (notice_at(8), StoppedEarly),
        ({}, None),
    ):
        trainer = make_trainer(hooks=hooks, max_epochs=2)
        histories.append(trainer.history)
        if error is None:
            trainer.train()
        else:
            with pytest.raises(error):
                trainer.train()
    return histories, tmp_path / "runs/default"


def test_each_start_knows_those_before_it_and_what_they_cost(lives):
    histories, run = lives
    assert [len(history.starts) for history in histories] == [1, 2, 3, 4]
    last = histories[-1].starts
    assert [start.generation for start in last] == [1, 2, 3, 4]
    assert [start.step for start in last] == [0, 0, 5, 8]
    assert [start.ended for start in last] == [None, "failed", "failed", "stopped early"]
    assert [start.steps_lost for start in last] == [None, 2, 2, 0]
    assert [start.checkpoint is None for start in last] == [True, True, False, False]
    assert last[0].down_s is None
    assert all(0 <= start.down_s < 60 for start in last[1:])
    assert all(0 <= start.load_s < 60 and abs(start.time - time.time()) < 100 for start in last)
    log = (run / "log.txt").read_text()
    assert "training from scratch; 2 steps lost, the previous start had failed, down for" in log
    assert re.search(r"epoch 1, step 5\.\n.*Resume report: 2 steps lost, the previous start had failed, down for", log)
    assert re.search(r"iteration 3, step 8\.\n.*Resume report: no step lost, the previous start had stopped", log)
    assert log.count("Epoch 2 continues after 12 samples in the same order: no sample is repeated or left out.") == 1


def test_checkpoints_and_claims_hold_them(lives):
    histories, run = lives
    assert minetorch.load(run, "latest")["history"] == histories[-1].state_dict()
    writers = Store.open(run).child("models", "writers")
    claims = [json.loads(writers.read(claim_file(number))) for number in (1, 2, 3, 4)]
    assert [claim["how"] for claim in claims] == ["failed", "failed", "stopped early", "finished"]
    assert [claim["step"] for claim in claims] == [2, 7, 8, 10]
    assert [claim["start"] for claim in claims] == histories[-1].state_dict()


def test_the_command_shows_them(lives, capsys):
    _, run = lives
    capsys.readouterr()
    assert main(["show", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("START"))
    rows = [line.split("  ") for line in lines[at + 1 : at + 5]]
    assert [row[-1] for row in rows] == ["failed", "failed", "stopped early", "finished"]
    assert "scratch" in lines[at + 2]
    assert "step 8" in lines[at + 4]
    assert main(["show", str(run), "--json"]) == 0
    writers = json.loads(capsys.readouterr().out)["writers"]
    assert [writer["start"]["steps_lost"] for writer in writers] == [None, 2, 2, 0]


def test_from_another_run_or_afresh_nothing_is_said_to_be_lost(lives, make_trainer, tmp_path):
    _, run = lives
    other = make_trainer(code="other", resume=str(run / "models/epoch_1.pth.tar"))
    assert [start.step for start in other.history.starts] == [0, 0, 5]
    assert other.history.starts[-1].steps_lost is None
    assert other.history.starts[-1].checkpoint.startswith(str(run))
    assert "Resume report: loaded in" in (tmp_path / "runs/other/log.txt").read_text()
    afresh = make_trainer(resume=False)
    assert [start.generation for start in afresh.history.starts] == [1, 2, 3, 4, 5]
    assert (afresh.history.starts[-1].steps_lost, afresh.history.starts[-1].ended) == (None, "finished")


def test_a_checkpoint_from_before_there_was_a_history(make_trainer, trained, tmp_path):
    trained(max_epochs=1)
    [path] = (tmp_path / "runs/default/models").glob("g0001-*.pth.tar")
    state = torch.load(path, weights_only=True)
    del state["history"]
    torch.save(state, tmp_path / "old.pth.tar")
    trainer = make_trainer(code="other", resume=str(tmp_path / "old.pth.tar"))
    assert [start.step for start in trainer.history.starts] == [5]
