"""What the launcher can read of a Trainer while it works."""

import os
import struct
import time
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from minetorch import HOOK_POINTS
from minetorch_launch.heartbeat import HeartbeatWriter, Phase

NAMES = ("version", "pid", "beats", "at", "step", "phase", "began", "first_step_at", "epoch", "saved")


@pytest.fixture
def memory():
    """Makes memories as a worker's start does, and reads them as the launcher does."""
    made = []

    def make(name="minetorch-heartbeat", version=1, pid=None, size=128):
        descriptor = os.memfd_create(name)
        made.append(descriptor)
        os.truncate(descriptor, size)
        os.pwrite(descriptor, struct.pack("qq", version, os.getpid() if pid is None else pid), 0)

        def read():
            cells = struct.unpack("16q", os.pread(descriptor, 128, 0))
            assert cells[len(NAMES) :] == (0,) * 6
            return SimpleNamespace(**dict(zip(NAMES, cells, strict=False)))

        return SimpleNamespace(variables={"MINETORCH_HEARTBEAT_FD": str(descriptor)}, read=read)

    yield make
    for descriptor in made:
        os.close(descriptor)


@pytest.fixture
def heard(memory, monkeypatch):
    """The memory of this process, for the Trainers made in it."""
    memory = memory()
    for name, value in memory.variables.items():
        monkeypatch.setenv(name, value)
    return memory


def test_the_beats_of_a_run_in_the_launchers_order(memory):
    memory = memory()
    clock = count(1000)
    heartbeat = HeartbeatWriter.from_environ(memory.variables)
    heartbeat._clock = lambda: next(clock)
    heartbeat.begin()
    assert vars(memory.read()) == dict(zip(NAMES, (1, os.getpid(), 1, 1000, 0, 0, -1, 0, 0, -1), strict=True))
    heartbeat.resumed(7, 2, saved=True)
    heartbeat.epoch(3)
    heartbeat.iteration(7)
    assert memory.read().first_step_at == 0
    heartbeat.iteration(8)
    heartbeat.iteration(9)
    heartbeat.saved(9)
    assert vars(memory.read()) == dict(zip(NAMES, (1, os.getpid(), 7, 1006, 9, 1, 7, 1004, 3, 9), strict=True))


def test_a_phase_gives_the_one_before(memory):
    memory = memory()
    heartbeat = HeartbeatWriter.from_environ(memory.variables)
    assert heartbeat.enter(Phase.TRAINING) == Phase.STARTING
    assert heartbeat.enter(Phase.SAVING) == Phase.TRAINING
    assert memory.read().phase == 3


@pytest.mark.parametrize(
    "wrong", [{"name": "other"}, {"version": 2}, {"pid": 1}, {"size": 64}], ids=["name", "version", "pid", "size"]
)
def test_a_memory_that_is_not_ours_is_left_alone(memory, wrong):
    made = memory(**wrong)
    before = os.pread(int(made.variables["MINETORCH_HEARTBEAT_FD"]), 128, 0)
    heartbeat = HeartbeatWriter.from_environ(made.variables)
    heartbeat.begin()
    heartbeat.iteration(5)
    assert os.pread(int(made.variables["MINETORCH_HEARTBEAT_FD"]), 128, 0) == before


@pytest.mark.parametrize("value", ["", "x", "-1", "0", "999999", "9" * 40])
def test_a_senseless_descriptor_is_no_error(value):
    HeartbeatWriter.from_environ({"MINETORCH_HEARTBEAT_FD": value}).begin()


class Beating(Dataset):
    """Would beat for its worker, if it could."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        HeartbeatWriter.from_environ(os.environ).iteration(99)
        return torch.zeros(1), torch.zeros(1)


def test_a_loaders_worker_does_not_beat(heard, trained):
    assert trained(train_dataloader=DataLoader(Beating(), num_workers=1), max_epochs=1).progress.step == 4
    found = heard.read()
    assert (found.step, found.phase, found.epoch) == (4, Phase.DONE, 1)


def test_a_trainers_phases_and_counters(heard, trained, make_trainer):
    seen = []

    def note(point):
        def hook(trainer):
            seen.append((point, heard.read()))

        return hook

    def loss(trainer, data):
        seen.append(("loss", heard.read()))
        return ((trainer.model(data[0]) - data[1]) ** 2).mean()

    run = {"loss_func": loss, "accumulated_iter": 2, "hooks": {point: note(point) for point in HOOK_POINTS}}
    began = time.monotonic_ns()
    trained(**run, max_epochs=1)
    by_point = {point: [found for other, found in seen if other == point] for point, _ in seen}
    in_hooks = [found for point, found in seen if point != "loss"]
    assert {found.phase for found in in_hooks} == {Phase.IN_HOOK}
    assert [found.phase for found in by_point["loss"]] == [Phase.TRAINING] * 5 + [Phase.VALIDATING] * 2
    assert [found.step for found in by_point["after_train_iteration_end"]] == [0, 1, 1, 2, 3]
    beats = [found.beats for _, found in seen]
    assert beats == sorted(set(beats))
    times = [found.at for _, found in seen]
    assert [began, *times] == sorted([began, *times])
    first = by_point["before_train_iteration_start"][2]
    assert by_point["before_train_iteration_start"][1].first_step_at == 0
    assert began < first.first_step_at <= first.at
    last = heard.read()
    assert (last.step, last.epoch, last.saved, last.began, last.phase) == (3, 1, 3, 0, Phase.DONE)
    assert by_point["before_checkpoint_persisted"][0].saved == -1

    second = make_trainer(**run, max_epochs=2)
    found = heard.read()
    assert (found.step, found.epoch, found.saved, found.began, found.phase) == (3, 1, 3, 3, Phase.STARTING)
    assert found.beats > last.beats
    second.train()
    assert heard.read().first_step_at == first.first_step_at


def test_saving_is_a_phase(heard, trained, monkeypatch):
    from minetorch.resumption.persistence import Persistence

    phases = []
    save = Persistence.save

    def noted(*args, **given):
        phases.append(heard.read().phase)
        return save(*args, **given)

    monkeypatch.setattr(Persistence, "save", noted)
    trained(max_epochs=1)
    assert phases == [Phase.SAVING]


def test_a_trainer_that_fails_is_done(heard, make_trainer):
    def fail(trainer):
        raise RuntimeError("as it must")

    with pytest.raises(RuntimeError, match="as it must"):
        make_trainer(hooks={"before_epoch_start": fail}).train()
    assert heard.read().phase == Phase.DONE
