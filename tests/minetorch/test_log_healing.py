"""What a resumption does to the log, and what a log costs on a storage that cannot append."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from minetorch.checkpoint import Store
from minetorch.log import RunLog
from minetorch.log.mark import CHECKED, Mark, undone_from
from minetorch.log.remote import RemoteFileHandler


@pytest.fixture(params=["{}/ugly päth/run", "memory://healing/{}"])
def store(request, tmp_path):
    name = tmp_path if request.param.startswith("{") else tmp_path.name
    return Store.open(request.param.format(name))


def start(store, *lines, place=None, step=0, rank=0):
    """One start of a run that logs some lines: gives where the log ended after each."""
    log = RunLog(store, logging_format="%(message)s", held=True, rank=rank)
    log.heal(place, step)
    log.begin()
    places = []
    for line in lines:
        log.logger.info(line)
        places.append(log.place())
    log.close()
    return places


def lines(store, name="log.txt"):
    return store.read(name).decode().splitlines()


@pytest.mark.parametrize("rank", [0, 5])
def test_the_lines_of_undone_work_are_moved_aside(store, rank):
    name, stem = ("log.txt", "log") if rank == 0 else (f"logs/rank_{rank}.txt", f"rank_{rank}")
    _, place, *_ = start(store, "epoch 1", "epoch 2", "epoch 3", "amid epoch 4", rank=rank)
    start(store, "epoch 3 anew", place=place, step=20, rank=rank)
    moved = f"Moved 2 lines, logged after this checkpoint was saved, to logs/{stem}.undone.0001.txt."
    assert lines(store, name) == ["epoch 1", "epoch 2", moved, "epoch 3 anew"]
    assert lines(store, f"logs/{stem}.undone.0001.txt") == ["epoch 3", "amid epoch 4"]
    start(store, "epoch 3 again", place=place, step=20, rank=rank)
    assert lines(store, name)[:2] == ["epoch 1", "epoch 2"]
    assert lines(store, name)[-1] == "epoch 3 again"
    assert lines(store, f"logs/{stem}.undone.0002.txt") == [moved, "epoch 3 anew"]


def test_what_a_run_said_when_it_ended_well_stays(store):
    _, place, *_ = start(store, "epoch 1", "epoch 2", "Saved it", "Ended at step 20.")
    start(store, "epoch 3", place=place, step=20)
    assert lines(store) == ["epoch 1", "epoch 2", "Saved it", "Ended at step 20.", "epoch 3"]
    start(store, "epoch 3", place=place, step=20)
    assert lines(store)[:4] == ["epoch 1", "epoch 2", "Saved it", "Ended at step 20."]
    assert lines(store)[5:] == ["epoch 3"]
    # The same end, but an earlier checkpoint was asked for: what came after that is undone.
    assert undone_from(b"epoch 3\nEnded at step 20.\n", 10) == 0


@pytest.mark.parametrize(
    "place", [None, [], [0, 7], ["0", 7, 1], [0, 7, 1], [0, 10**9, 0], [3, 0, 0], "log", {"rank": 0}]
)
def test_a_place_in_another_log_changes_nothing(store, place):
    start(store, "epoch 1", "epoch 2")
    start(store, "epoch 3", place=place)
    assert lines(store) == ["epoch 1", "epoch 2", "epoch 3"]


def test_a_log_that_is_gone_is_begun_anew(store):
    place = start(store, "epoch 1")[-1]
    store.delete("log.txt")
    start(store, "epoch 2", place=place)
    assert lines(store) == ["epoch 2"]


def test_marks_know_their_log():
    content = b"line\n" * 200
    mark = Mark.at_end(0, len(content), content)
    assert mark.fits(content)
    assert mark.fits(content + b"more\n")
    assert not mark.fits(content[:-1])
    assert not mark.fits(b"x" * len(content))
    assert mark == Mark.at_end(0, len(content), content[-CHECKED:]) == Mark.from_list(mark.to_list())


class Counted:
    """A remote store that counts what is written, and can be told to fail."""

    def __init__(self, store, told=None):
        self.store = store
        self.told = told or {"bytes": 0, "writes": 0, "fail after": 10**9}
        self.is_local = False

    def child(self, name):
        return Counted(self.store.child(name), self.told)

    def write(self, name, data):
        if self.told["writes"] >= self.told["fail after"]:
            raise OSError("killed")
        self.told["writes"] += 1
        self.told["bytes"] += len(data)
        self.store.write(name, data)

    def delete(self, name):
        self.told["writes"] += 1
        if self.told["writes"] > self.told["fail after"]:
            raise OSError("killed")
        self.store.delete(name)

    def __getattr__(self, name):
        return getattr(self.store, name)


@pytest.fixture
def remote(tmp_path):
    return Counted(Store.open(f"memory://parts/{tmp_path.name}"))


def handler(store, **options):
    return RemoteFileHandler(store, rank=0, append=True, console=RunLog(store).logger.handlers[0], **options)


def whole(store):
    """All lines of a log in parts."""
    names = sorted(name for name in store.child("logs").list("log.") if "undone" not in name)
    contents = [store.child("logs").read(name) for name in names] + [store.read("log.txt")]
    return [line for part in contents for line in part.decode().splitlines() if not line.startswith("(goes on")]


def test_the_cost_of_a_remote_log_grows_with_its_length_and_not_with_its_square(remote):
    log = handler(remote, part_bytes=1000)
    text = "x" * 99
    for _ in range(500):
        log.add(f"{text}\n")
        log.flush()
    assert whole(remote) == [text] * 500
    assert max(len(remote.child("logs").read(name)) for name in remote.child("logs").list()) <= 1100
    # 50,000 bytes at 500 flushes of at most 1,100 each, and the parts; it would be 12,500,000 otherwise.
    assert remote.told["bytes"] < 500 * 700
    assert remote.read("log.txt").startswith(b"(goes on from logs/log.00")
    log.close()


def test_a_log_in_parts_goes_on_and_is_healed_over_their_bounds(remote):
    log = handler(remote, part_bytes=200)
    places = []
    for number in range(30):
        log.add(f"line {number:02} {'x' * 30}\n")
        log.flush()
        places.append(log.mark())
    log.close()
    before = whole(remote)
    assert len(remote.child("logs").list()) >= 4
    for number in (24, 12, 3):
        log = handler(remote, part_bytes=200)
        count, _ = log.heal(places[number], 0, None)
        assert count == len(before) - number - 1
        before = before[: number + 1]
        log.close()
        assert whole(remote) == before
    log = handler(remote, part_bytes=200)
    log.add("next\n")
    log.close()
    assert whole(remote) == [*before, "next"]


def test_a_mark_of_lines_that_came_while_a_part_was_being_closed(remote):
    log = handler(remote, part_bytes=100)
    log.add("a" * 150 + "\n")
    marks = []

    class Meanwhile(Counted):
        def write(self, name, data):
            if not marks:
                log.add("b\n")
                marks.append(log.mark())
            super().write(name, data)

        def child(self, name):
            return Meanwhile(self.store.child(name), self.told)

    log._store = Meanwhile(remote.store, remote.told)
    log.flush()
    log.add("undone\n")
    log.close()
    assert whole(remote) == ["a" * 150, "b", "undone"]
    log = handler(remote)
    assert log.heal(marks[0], 0, None)[0] == 1
    log.close()
    assert whole(remote) == ["a" * 150, "b"]


@pytest.mark.parametrize("writes", range(7))
def test_a_kill_between_two_writes_loses_and_doubles_no_line(remote, writes):
    log = handler(remote, part_bytes=100, flush_s=1000)
    log.add("a" * 60 + "\n")
    log.flush()
    place = log.mark()
    remote.told["fail after"] = remote.told["writes"] + writes
    for letter in "bc":
        log.add(letter * 60 + "\n")
        log.flush()
    after = handler(remote, part_bytes=100, flush_s=1000)
    after.heal(place, 0, None)
    remote.told["fail after"] = 10**9
    # Whatever of b and c has reached the store, the next start sees a first and each at most once, in order.
    last = handler(remote, part_bytes=100, flush_s=1000)
    last.add("d\n")
    last.flush()
    shown = [line[0] for line in whole(remote)]
    assert shown == sorted(set(shown))
    assert shown[0] == "a"
    assert shown[-1] == "d"
    for each in (log, after, last):
        if each._timer is not None:
            each._timer.cancel()


def test_lines_reach_a_remote_store_without_a_flush_and_in_one_write(remote):
    log = handler(remote, flush_s=0.2)
    for number in range(50):
        log.add(f"{number}\n")
    timer = log._timer
    timer.join(20)
    assert remote.read("log.txt").count(b"\n") == 50
    assert remote.told["writes"] == 1
    log.close()


RUN = """
import os, sys, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from minetorch import Checkpoints, Trainer

def loss_func(trainer, data):
    return nn.functional.mse_loss(trainer.model(data[0]), data[1])

def speak(trainer, index):
    trainer.logger.info("rank %d step %d", trainer.rank, trainer.progress.step)
    if trainer.progress.step == int(sys.argv[1]):
        os.kill(os.getpid(), 9)

torch.manual_seed(0)
model = nn.Linear(1, 1)
inputs = torch.linspace(-1, 1, 16).unsqueeze(1)
Trainer(
    "runs", model, torch.optim.SGD(model.parameters(), lr=0.1), DataLoader(TensorDataset(inputs, inputs), batch_size=4),
    loss_func, max_epochs=3, checkpoints=Checkpoints(every_steps=2), drawer=None,
    hooks={"after_train_iteration_end": speak},
).train()
"""


@pytest.mark.slow
def test_a_killed_and_resumed_run_has_a_log_without_overlap_or_gap(tmp_path):
    (tmp_path / "train.py").write_text(RUN)
    for kill_at, code in ((7, -signal.SIGKILL), (0, 0), (0, 0)):
        done = subprocess.run(
            [sys.executable, "train.py", str(kill_at)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert done.returncode == code, done.stderr
    log = (tmp_path / "runs/default/log.txt").read_text()
    steps = [int(line.rsplit(" ", 1)[1]) for line in log.splitlines() if " rank 0 step " in line]
    assert steps == list(range(1, 13))
    assert log.count("Ended at step 12.") == 2
    undone = (tmp_path / "runs/default/logs/log.undone.0001.txt").read_text()
    assert "rank 0 step 7" in undone
    assert textwrap.dedent(log).count("logged after this checkpoint was saved, to logs/log.undone.0001.txt.") == 1
