import dataclasses
import os
from pathlib import Path

import pytest

from minetorch_launch.hangs.memory import SharedMemory
from minetorch_launch.hangs.watch import PHASES, Heartbeat, Watch, first_heartbeat, sum_up


def heart(beats, step=0, phase="training", *, stepped=True, **more):
    given = {
        "beaten_at": 0.0,
        "began_at_step": 0,
        "first_step_at": 1.0 if stepped else None,
        "epoch": 1,
        "checkpoint_step": None,
    }
    return Heartbeat(beats=beats, step=step, phase=phase, **{**given, **more})


class World:
    """Feeds a watch with looks half a second apart, as the launcher does."""

    def __init__(self, hang_timeout=None):
        self.watch = Watch(hang_timeout)
        self.now = 1000.0
        self.beats = 0

    def live(self, seconds, *others, pause=0.5, **of_heart):
        """One rank beats every ``pause`` seconds, beside ranks that do not change."""
        stall = None
        for _ in range(int(seconds / pause)):
            self.beats += 1
            stall = stall or self.stand(pause, *others, **of_heart)
        return stall

    def stand(self, seconds, *others, **of_heart):
        """No rank beats: the stall, as soon as there is one."""
        for _ in range(max(1, int(seconds / 0.5))):
            self.now += 0.5
            stall = self.watch.look(dict(enumerate([heart(self.beats, **of_heart), *others])), self.now)
            if stall:
                return stall
        return None


def told(pid=7, **at):
    """The memory of a worker, changed at the indices given."""
    words = bytearray(first_heartbeat(pid))
    for index, value in at.items():
        start = 8 * int(index[1:])
        words[start : start + 8] = value.to_bytes(8, "little", signed=True)
    return bytes(words)


def test_the_memory_is_read_as_the_table_says():
    told_bytes = told(i2=12, i3=5_500_000_000, i4=4211, i5=3, i6=4000, i7=2_000_000_000, i8=3, i9=4200)
    assert Heartbeat.from_bytes(told_bytes, 7) == Heartbeat(
        beats=12,
        beaten_at=5.5,
        step=4211,
        phase="saving",
        began_at_step=4000,
        first_step_at=2.0,
        epoch=3,
        checkpoint_step=4200,
    )
    assert [Heartbeat.from_bytes(told(i5=number), 7).phase for number in range(6)] == list(PHASES)


def test_a_new_memory_knows_nothing_yet():
    new = Heartbeat.from_bytes(first_heartbeat(7), 7)
    assert (new.beats, new.phase, new.began_at_step, new.first_step_at) == (0, "starting", None, None)
    assert new.checkpoint_step is None
    assert len(first_heartbeat(7)) == 128


@pytest.mark.parametrize(
    "data", [b"", first_heartbeat(7)[:40], bytes(128), told(i0=2), told(i5=6), told(i5=-1), first_heartbeat(8)]
)
def test_memory_of_another_layout_or_process_is_not_read(data):
    assert Heartbeat.from_bytes(data, 7) is None


def test_the_real_memory_holds_both_ways():
    memory = SharedMemory.make(os.getpid())
    try:
        assert memory.read_heartbeat(os.getpid()).beats == 0
        assert memory.read_heartbeat(1) is None
        os.write(memory.stacks, b"first")
        assert memory.has_stacks()
        memory.empty_stacks()
        os.write(memory.stacks, b"then")
        assert memory.read_stacks() == "then"
        names = [Path(f"/proc/self/fd/{fd}").readlink().name for fd in memory.fds]
        assert [name.split()[0] for name in names] == [
            f"memfd:minetorch-{kind}" for kind in ("crash", "heartbeat", "stacks")
        ]
        assert not any(os.get_inheritable(fd) for fd in memory.fds)
    finally:
        memory.close()


def test_without_a_trainer_there_is_no_stall():
    world = World(hang_timeout=1)
    assert world.stand(50_000) is None
    assert world.watch.look({}, world.now + 1) is None


def test_the_users_limit_counts_in_every_phase_from_the_first_beat():
    for phase in PHASES[:5]:
        world = World(hang_timeout=60)
        assert world.stand(500, phase="starting", stepped=False) is None
        assert world.live(30, phase=phase, stepped=False) is None
        stall = world.stand(1000, phase=phase, stepped=False)
        assert 60 < stall.seconds <= 61
        assert (stall.limit, stall.because) == (60, "--hang-timeout 60")


@pytest.mark.parametrize(
    ("phase", "stepped", "limit"),
    [
        ("training", True, 300),
        ("validating", True, 300),
        ("saving", True, 1800),
        ("hook", True, 1800),
        ("starting", True, 1800),
        ("training", False, 1800),
    ],
)
def test_the_derived_limit_goes_by_the_phase(phase, stepped, limit):
    world = World()
    assert world.live(20, phase=phase, stepped=stepped) is None
    assert world.stand(limit - 1, phase=phase, stepped=stepped) is None
    stall = world.stand(2, phase=phase, stepped=stepped)
    assert stall.limit == limit
    assert f"{limit:,} s " in stall.because


def test_ten_times_the_longest_pause_is_allowed():
    world = World()
    assert world.live(600, pause=100.0) is None
    assert world.live(50) is None
    assert world.stand(998) is None
    stall = world.stand(10)
    assert stall.limit == pytest.approx(1000, abs=1)
    assert stall.because == "10 times the longest pause so far, 100 s"


def test_one_rank_that_beats_keeps_all_alive():
    assert World(hang_timeout=10).live(100, heart(5), heart(9)) is None


def test_the_most_lenient_rank_counts():
    world = World()
    assert world.live(10, heart(5, phase="saving")) is None
    assert world.stand(1790, heart(5, phase="saving")) is None
    assert world.stand(20, heart(5, phase="saving")).because == "1,800 s while saving"


def test_ranks_whose_training_is_over_are_not_waited_for():
    world = World(hang_timeout=10)
    world.live(5, phase="training")
    assert world.stand(100, heart(5, phase="done"), phase="done") is None
    world = World(hang_timeout=10)
    assert world.live(50, heart(5, phase="done")) is None
    assert world.stand(20, heart(5, phase="done")).seconds > 10


def test_only_time_that_the_launcher_looked_on_counts():
    world = World(hang_timeout=60)
    world.live(10)
    assert world.stand(30) is None
    world.now += 100_000  # Ctrl-Z, or a laptop's lid
    assert world.stand(20) is None
    assert 60 < world.stand(20).seconds <= 61


def test_a_pause_of_the_launcher_is_no_gap_of_the_workers():
    world = World()
    world.live(10)
    world.now += 100_000
    world.live(10)
    assert world.stand(400).limit == 300


def test_a_stall_says_where_all_stood():
    world = World(hang_timeout=10)
    world.live(5, heart(3, 4211, epoch=3), step=4200)
    line = world.stand(30, heart(3, 4211, epoch=3), step=4200).line()
    assert line == "no step for 10 s (last: step 4,211, epoch 3; allowed: --hang-timeout 10)"
    world = World(hang_timeout=10)
    world.live(5, stepped=False)
    assert world.stand(30, stepped=False).line().startswith("no sign of life for 10 s, before the first step")


def test_a_worlds_heartbeats_in_one():
    hearts = {
        0: heart(5, 10, "saving", began_at_step=4, first_step_at=3.0, checkpoint_step=8, epoch=2),
        1: heart(6, 11, began_at_step=None, first_step_at=2.0, epoch=2),
    }
    summed = sum_up(hearts)
    assert (summed.step, summed.epoch, summed.phase) == (11, 2, "saving")
    assert (summed.began_at_step, summed.first_step_at, summed.checkpoint_step) == (4, 3.0, 8)
    late = dataclasses.replace(hearts[1], first_step_at=None)
    assert sum_up({**hearts, 1: late}).first_step_at is None
