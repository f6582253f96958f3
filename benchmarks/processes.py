"""A command and every process that it starts: their end, their CPU time, their memory, the files they open."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["Answering", "DiedError", "Tree", "available_mib", "count_opened_files", "environment", "gate"]

_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.005

_OF_LAUNCHERS = ("SLURM_", "MINETORCH_", "OMP_", "MKL_")
_OF_WORLDS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class DiedError(Exception):
    """A command ended, or did not come on, before it did what it was started for."""


def environment(**more: str) -> dict[str, str]:
    """This process's environment, without what a launcher around it has set."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_OF_LAUNCHERS) and name not in _OF_WORLDS
    }
    return {**plain, **more}


class Tree:
    """A command that runs, with all of its descendants, also those whose parents have died.

    Attributes:
        started_at: second of ``time.monotonic`` at which it was started.
    """

    def __init__(self, command: Sequence[object], env: Mapping[str, str], folder: Path) -> None:
        # Whoever loses its parent becomes our child: none is lost, and each one's CPU time is told on its end.
        _adopt_orphans(1)
        self._others = set(_descendants(os.getpid()))
        self._used_before = _cpu_of_children()
        self._output = folder / f"output-{time.monotonic_ns()}"
        with self._output.open("wb") as output:
            self.started_at = time.monotonic()
            self._process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=folder,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text(errors="replace")

    def pids(self) -> list[int]:
        """The living ones."""
        return _descendants(os.getpid(), without=self._others)

    def memory(self) -> float:
        """MiB that all take, of which each shares its part of what several have mapped (PSS)."""
        return sum(_pss(pid) for pid in self.pids()) / 1024

    def cpu(self, without: Collection[int] = ()) -> float:
        """Seconds of processor time so far, of the living ones' threads."""
        return sum(_cpu(pid) for pid in self.pids() if pid not in without)

    def wait_for(self, done: Callable[[], bool], timeout: float) -> None:
        """Wait until something has come about.

        Raises:
            DiedError: the command ended before, or the time is up.
        """
        end = time.monotonic() + timeout
        while not done():
            if self._process.poll() is not None and not done():
                raise DiedError(f"exit code {self._process.returncode}:\n{self.output[-3000:]}")
            if time.monotonic() > end:
                raise DiedError(f"nothing within {timeout:.0f} s:\n{self.output[-3000:]}")
            time.sleep(_POLL_SECONDS)

    def finish(self, timeout: float) -> float:
        """Wait for the end of all, and return the seconds of processor time that they took together.

        Raises:
            DiedError: the time is up, or the command failed.
        """
        end = time.monotonic() + timeout
        self.wait_for(lambda: self._process.poll() is not None, timeout)
        while self._reap():
            if time.monotonic() > end:
                raise DiedError(f"left over after {timeout:.0f} s: {self.pids()}")
            time.sleep(_POLL_SECONDS)
        if self._process.returncode:
            raise DiedError(f"exit code {self._process.returncode}:\n{self.output[-3000:]}")
        return _cpu_of_children() - self._used_before

    def close(self) -> None:
        """Kill whatever is left, and adopt no more."""
        while pids := self._reap():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
        _adopt_orphans(0)

    def _reap(self) -> list[int]:
        """Take note of the ends of orphans, and return who lives."""
        self._process.poll()
        for pid in self.pids():
            if pid != self._process.pid:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        return self.pids()

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Answering:
    """A script that answers each line on its stdin with a figure, once it has said that it is ready."""

    def __init__(self, command: Sequence[object]) -> None:
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(),
        )
        self._read()

    def ask(self) -> float:
        """Have it measure once more."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise DiedError(f"{self._process.args!r} ended")
        return line

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def gate(path: Path) -> Iterator[Callable[[], None]]:
    """A named pipe which whoever opens it for reading waits at, until what this yields is called."""
    os.mkfifo(path)
    opened: list[int] = []
    try:
        yield lambda: opened.append(os.open(path, os.O_RDWR))
    finally:
        for descriptor in opened:
            os.close(descriptor)
        path.unlink()


def available_mib() -> float:
    """Memory that can be had without swapping."""
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1024


def count_opened_files(command: Sequence[object], env: Mapping[str, str], timeout: float) -> int | None:
    """How many files a command and all of its descendants open; None where there is no strace."""
    if shutil.which("strace") is None:
        return None
    with tempfile.TemporaryDirectory(prefix="minetorch-benchmark-") as folder:
        trace = Path(folder) / "trace"
        traced = ["strace", "-f", "-qq", "-e", "trace=open,openat,openat2", "-o", trace, *command]
        with Tree(traced, env, Path(folder)) as tree:
            tree.finish(timeout)
        return sum(" = -1 " not in line and "open" in line for line in trace.read_text(errors="replace").splitlines())


def _adopt_orphans(on: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, on, 0, 0, 0)


def _descendants(root: int, without: Collection[int] = ()) -> list[int]:
    """All below a process; of those left out, theirs neither."""
    parents: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with suppress(OSError):
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    found = [root]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid and child not in without)
    return found[1:]


def _stat(pid: int) -> list[str]:
    """From the process's state on."""
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()


def _cpu(pid: int) -> float:
    nanoseconds = 0
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            nanoseconds += int((thread / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _pss(pid: int) -> int:
    """KiB."""
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as rollup:
        for line in rollup:
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0
