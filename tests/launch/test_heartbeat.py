"""The heartbeat's memory, from the side of the script and from that of the launcher."""

import json
import os
import subprocess
import sys
import textwrap
import timeit
from dataclasses import asdict, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minetorch_launch.hangs.shared_memory import SharedMemory
from minetorch_launch.heartbeat import HEARTBEAT_BYTES, Heartbeat, HeartbeatWriter, Phase, beat, merge, new_heartbeat


def memory_with(pid=7, **cells):
    """The memory of a worker, changed at the indices given."""
    data = bytearray(new_heartbeat(pid))
    for index, value in cells.items():
        start = 8 * int(index[1:])
        data[start : start + 8] = value.to_bytes(8, "little", signed=True)
    return bytes(data)


def test_the_memory_is_read_as_the_table_says():
    data = memory_with(i2=12, i3=5_500_000_000, i4=4211, i5=3, i6=4000, i7=2_000_000_000, i8=3, i9=4200)
    heartbeat = Heartbeat.from_bytes(data, 7)
    assert heartbeat == Heartbeat(
        beats=12,
        last_beat_at=5.5,
        step=4211,
        phase=Phase.SAVING,
        began_at_step=4000,
        first_step_at=2.0,
        epoch=3,
        checkpoint_step=4200,
    )
    assert Heartbeat.from_dict(json.loads(json.dumps(asdict(heartbeat)))) == heartbeat


def test_a_new_memory_knows_nothing_yet():
    new = Heartbeat.from_bytes(new_heartbeat(7), 7)
    assert (new.beats, new.phase, new.began_at_step, new.first_step_at) == (0, Phase.STARTING, None, None)
    assert (new.checkpoint_step, new.has_stepped, len(new_heartbeat(7))) == (None, False, HEARTBEAT_BYTES)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        new_heartbeat(7)[:40],
        bytes(128),
        memory_with(i0=2),
        memory_with(i5=7),
        memory_with(i5=-1),
        new_heartbeat(8),
    ],
)
def test_memory_of_another_layout_or_process_is_not_read(data):
    assert Heartbeat.from_bytes(data, 7) is None


@settings(deadline=None, database=None)
@given(st.binary(max_size=200), st.integers(0, 2**31))
@example(b"", 1)
def test_whatever_is_in_the_memory_is_a_heartbeat_or_nothing(data, pid):
    assert Heartbeat.from_bytes(data, pid) is None
    # Once the memory is assigned, every field but the first two may be anything.
    heartbeat = Heartbeat.from_bytes(new_heartbeat(pid)[:16] + data.ljust(HEARTBEAT_BYTES, b"\xff"), pid)
    assert heartbeat is None or heartbeat.phase in Phase


@pytest.fixture
def memory():
    memory = SharedMemory.make()
    yield memory
    memory.close()


def test_only_the_process_that_the_memory_is_assigned_to_may_write(memory):
    pid = os.getpid()
    environ = {"MINETORCH_HEARTBEAT_FD": str(memory.heartbeat)}
    HeartbeatWriter.from_environ(environ).begin()
    assert memory.read_heartbeat(pid) is None
    memory.assign(pid)
    assert memory.read_heartbeat(pid).beats == 0
    HeartbeatWriter.from_environ(environ).begin()
    assert memory.read_heartbeat(pid).beats == 1
    assert memory.read_heartbeat(1) is None


def test_the_memory_of_stacks_is_emptied_without_telling_the_writer(memory):
    os.write(memory.stacks, b"first")
    assert memory.has_stacks()
    memory.empty_stacks()
    os.write(memory.stacks, b"then")
    assert memory.read_stacks() == "then"
    assert not any(os.get_inheritable(fd) for fd in memory.fds)


def test_the_heartbeats_of_several_workers_in_one():
    one = Heartbeat(5, 1.0, 10, Phase.SAVING, began_at_step=4, first_step_at=3.0, epoch=2, checkpoint_step=8)
    other = Heartbeat(6, 2.0, 11, Phase.TRAINING, began_at_step=None, first_step_at=2.0, epoch=2, checkpoint_step=None)
    merged = merge({0: one, 1: other})
    assert (merged.beats, merged.step, merged.epoch, merged.phase) == (11, 11, 2, Phase.SAVING)
    assert (merged.began_at_step, merged.first_step_at, merged.checkpoint_step) == (4, 3.0, 8)
    assert merge({0: one, 1: replace(other, first_step_at=None)}).first_step_at is None
    assert merge({0: replace(one, phase=Phase.DONE), 1: other}).phase == Phase.TRAINING


def run_script(text, memory=None):
    """Run a script as a worker whose heartbeat is ``memory``; the heartbeat that it leaves."""
    fds = () if memory is None else (memory.heartbeat,)
    environ = {**os.environ, **({} if memory is None else {"MINETORCH_HEARTBEAT_FD": str(memory.heartbeat)})}
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.readline()\n" + textwrap.dedent(text)],
        stdin=subprocess.PIPE,
        pass_fds=fds,
        env=environ,
    )
    if memory is not None:
        memory.assign(process.pid)
    process.communicate(b"\n", timeout=60)
    assert process.returncode == 0
    return memory.read_heartbeat(process.pid) if memory is not None else None


def test_a_plain_script_beats(memory):
    heartbeat = run_script("from minetorch_launch.heartbeat import beat\nfor step in range(41, 44): beat(step)", memory)
    assert (heartbeat.beats, heartbeat.step, heartbeat.began_at_step) == (3, 43, 40)
    assert heartbeat.phase == Phase.UNKNOWN
    assert heartbeat.first_step_at > 0
    assert heartbeat.has_stepped


def test_without_a_step_the_calls_are_counted(memory):
    heartbeat = run_script("from minetorch_launch.heartbeat import beat\nfor _ in range(3): beat()", memory)
    assert (heartbeat.beats, heartbeat.step, heartbeat.began_at_step) == (3, 3, None)
    assert heartbeat.has_stepped


def test_a_child_of_a_worker_does_not_beat(memory):
    heartbeat = run_script(
        """
        import os
        from minetorch_launch.heartbeat import beat
        beat()
        if os.fork() == 0:
            beat()
            os._exit(0)
        os.wait()
        """,
        memory,
    )
    assert heartbeat.beats == 1


def test_beside_a_trainer_it_only_beats(memory):
    heartbeat = run_script(
        """
        import os
        from minetorch_launch.heartbeat import HeartbeatWriter, beat
        trainer = HeartbeatWriter.from_environ(os.environ)
        trainer.begin()
        trainer.resumed(7, 1, saved=True)
        trainer.epoch(1)
        beat(1000)
        """,
        memory,
    )
    assert (heartbeat.beats, heartbeat.step, heartbeat.phase) == (4, 7, Phase.TRAINING)


def test_without_a_launcher_it_does_nothing_and_costs_nothing(monkeypatch):
    monkeypatch.delenv("MINETORCH_HEARTBEAT_FD", raising=False)
    beat()
    assert min(timeit.repeat(beat, number=10_000, repeat=5)) / 10_000 < 2e-6
    run_script("import minetorch_launch.heartbeat as h; h.beat(); h.beat(3)")
