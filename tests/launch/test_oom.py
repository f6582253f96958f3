import os
import sys
import time
from pathlib import Path

import pytest

from minetorch_launch.failures.oom import OomCounter, memory_hint

LAUNCH = (sys.executable, "-m", "minetorch_launch")

TRACEBACK = """Traceback (most recent call last):
  File "/home/a/train.py", line 9, in <module>
    {code}
{message}
"""


@pytest.mark.parametrize(
    ("cause", "says"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB", "GPU memory"),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory.", "GPU memory"),
        ("RuntimeError: CUDA error: out of memory", "GPU memory"),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "GPU memory"),
        ("MemoryError", "the machine's memory"),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7 TiB for an array", "the machine's memory"),
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried",
            "the machine's memory",
        ),
        ("OSError: [Errno 12] Cannot allocate memory", "the machine's memory"),
        (
            "RuntimeError: DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
            "workers are out of shared memory. Please try to raise your shared memory limit.",
            "--shm-size",
        ),
        ("RuntimeError: unable to write to file </torch_12_34_0>: No space left on device (28)", "--shm-size"),
        (
            "RuntimeError: unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)",
            "--shm-size",
        ),
    ],
)
def test_each_way_to_run_out_has_its_hint(cause, says):
    for hint in (
        memory_hint(cause),
        memory_hint("RuntimeError: later", TRACEBACK.format(code="step()", message=cause)),
    ):
        assert says in hint
        assert len(hint.splitlines()) == 2


def test_failures_of_another_kind_have_no_hint():
    assert memory_hint("ValueError: a") is None
    assert (
        memory_hint("ValueError: a", TRACEBACK.format(code='if "CUDA out of memory" in x:', message="ValueError: a"))
        is None
    )
    assert memory_hint("MyMemoryError: a") is None
    assert (
        memory_hint("RuntimeError: unable to open file </torch_1> in read-write mode: Too many open files (24)") is None
    )
    assert memory_hint("killed by SIGKILL") is None
    assert memory_hint("RuntimeError: DataLoader worker (pid 3) is killed by signal: Killed.") is None


def test_a_kill_counts_only_if_the_kernel_has_counted_one():
    assert "memory limit" in memory_hint("killed by SIGKILL", oom_kills=1)
    assert "memory limit" in memory_hint(
        "RuntimeError: DataLoader worker (pid 3) is killed by signal: Killed.", oom_kills=1
    )
    assert "memory limit" in memory_hint(
        "RuntimeError: DataLoader worker (pid(s) 3, 4) exited unexpectedly", oom_kills=1
    )
    assert memory_hint("ValueError: a", oom_kills=1) is None


class Kernel:
    """The files that the kernel counts in, at a place of our own."""

    def __init__(self, folder):
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        self.write("proc/self/cgroup", "")
        self.write("proc/vmstat", "pgfault 5\noom_kill 7\n")

    def write(self, path, text):
        file = self.proc.parent / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def counter(self):
        return OomCounter(self.proc, self.cgroups)


@pytest.fixture
def kernel(tmp_path):
    return Kernel(tmp_path)


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/job/step\n", "cgroup/job/step/memory.events"),
        ("0::/only/the/host/knows\n", "cgroup/memory.events"),
        ("5:cpu:/c\n4:memory:/job:1\n", "cgroup/memory/job:1/memory.oom_control"),
        ("4:cpu,memory:/elsewhere\n0::/\n", "cgroup/memory/memory.oom_control"),
        ("0::/job\n", "proc/vmstat"),
    ],
)
def test_kills_are_counted_where_the_kernel_counts_them(kernel, groups, file):
    kernel.write("proc/self/cgroup", groups)
    text = "low 0\noom 9\noom_kill {}\noom_group_kill 4\n"
    kernel.write(file, text.format(2))
    counter = kernel.counter()
    assert counter.kills() == 0
    kernel.write(file, text.format(5))
    assert counter.kills() == 3
    assert counter.kills() == 0


def test_nothing_to_read_is_nothing_known(kernel):
    (kernel.proc / "vmstat").unlink()
    (kernel.proc / "self/cgroup").unlink()
    assert kernel.counter().kills() == 0


def test_a_file_that_goes_away_counts_nothing(kernel):
    kernel.write("proc/self/cgroup", "0::/job\n")
    kernel.write("cgroup/job/memory.events", "oom_kill 2\n")
    counter = kernel.counter()
    (kernel.cgroups / "job/memory.events").unlink()
    assert counter.kills() == 0


def test_this_machine_can_be_asked():
    assert OomCounter().kills() == 0


@pytest.fixture
def small_group():
    """A control group of our own with 1.5 GiB of memory."""
    own = next((line for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line), None)
    v1 = Path("/sys/fs/cgroup/memory") if own else None
    group = (v1 or Path("/sys/fs/cgroup")) / f"minetorch-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        limit = group / ("memory.limit_in_bytes" if v1 else "memory.max")
        if not os.access(limit, os.W_OK):
            pytest.skip("no control group with a limit of its memory can be made here")
        limit.write_text(str(3 << 29))
        yield group
    finally:
        end = time.monotonic() + 10
        while group.exists():
            try:
                group.rmdir()
            except OSError:  # the last process is still on its way out
                assert time.monotonic() < end
                time.sleep(0.02)


@pytest.mark.slow
def test_a_rank_that_the_kernel_kills_for_its_memory_is_told_so(launches, small_group):
    script = launches.script(
        """
        import os, time
        held = []
        while os.environ["RANK"] == "1":
            held.append(b"x" * (1 << 26))
        time.sleep(60)
        """
    )
    inside = ("sh", "-c", 'echo $$ > "$0" && exec "$@"', str(small_group / "cgroup.procs"), *LAUNCH)
    done = launches.run("--nproc", 2, "--device", "cpu", script, command=inside)
    assert done.returncode == 137
    said = "rank 1 of 2 failed first: killed by SIGKILL: the kernel's out-of-memory killer ended it"
    assert said in done.stderr
    assert "  hint       the machine's memory is full: lower --nproc" in done.stderr
