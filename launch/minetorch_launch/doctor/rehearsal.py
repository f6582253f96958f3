"""A small launch by the launcher itself, and what its workers tell of it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minetorch_launch.doctor.child import Child
from minetorch_launch.doctor.finding import Finding, failed, passed, warned

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from minetorch_launch.guard import Guard

__all__ = [
    "Link",
    "Node",
    "Passing",
    "Rehearsal",
    "Worker",
    "assess_all_reduce",
    "assess_passing",
    "assess_signals",
    "assess_workers",
    "pass_signals_on",
    "rehearse",
]

_START_SECONDS = 30.0
_PASS_SECONDS = 5.0
_SLOW_BYTES_PER_SECOND = {"cpu": 0.1e9, "cuda": 1e9}
"""Bus bandwidth below which a network is likely to be the wrong one: about that of gigabit Ethernet for gloo,
a tenth of what PCIe or 100 Gbit/s give NCCL."""


@dataclass(frozen=True)
class Link:
    """One node's connection to another."""

    to: int
    error: str = ""
    """Why there is none."""

    round_trip: float = 0.0
    """Seconds, of the quickest of ten."""

    offset: float = 0.0
    """Seconds by which the other's clock is ahead."""


@dataclass(frozen=True)
class Node:
    """One machine as it met the others."""

    host: str
    address: str
    interface: str | None
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Worker:
    """What one worker of this node found."""

    host: str
    rank: int
    world_size: int
    stage: str
    """The last that it entered."""

    signals: dict[str, str]
    device: dict[str, Any]
    nodes: tuple[Node, ...]
    all_reduce: dict[str, float]
    private_bytes: int


@dataclass(frozen=True)
class Rehearsal:
    """How the launch went."""

    nproc: int
    device: str
    """``cpu`` or ``cuda``."""

    code: int | None
    """The launcher's exit code; None if it had to be ended."""

    cause: str
    """Why it failed, in a line."""

    workers: tuple[Worker, ...]
    """By local rank; those that never said anything are missing."""

    failed_rank: int | None = None
    """Which failed first, if the launcher says so."""

    @property
    def went_well(self) -> bool:
        """Whether every worker came to its end."""
        return self.code == 0 and len(self.workers) == self.nproc

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes of the launch; empty with one, or if they did not meet."""
        return self.workers[0].nodes if self.workers else ()

    @property
    def private_bytes(self) -> int:
        """Of memory that the largest worker took for itself; 0 if none came so far."""
        return max((worker.private_bytes for worker in self.workers), default=0)


def rehearse(
    options: Sequence[str], nproc: int, device: str, seconds: float, wait: float, folder: Path, guard: Guard
) -> Rehearsal:
    """Launch the trial as training would be.

    Args:
        options: for the launcher.
        nproc: workers that this starts.
        device: what they compute on.
        seconds: for the workers, after which they end themselves.
        wait: seconds for all of it, with the start and the other nodes.
        folder: an empty one.
        guard: sees to it that nothing outlives this process.
    """
    notes, logs = folder / "notes", folder / "logs"
    command = [*_launcher(), *options, "--log-dir", str(logs), *_trial("training", notes, seconds)]
    with Child(command, folder, guard, _environ(folder)) as child:
        code = child.wait(wait)
        workers = _read_workers(notes)
        rank, cause = _first_failure(logs / "failure.json")
        cause = cause or child.last_words()
    if code is None:
        cause = f"not over after {wait:g} s"
    return Rehearsal(nproc, device, code, cause if code != 0 else "", workers, rank)


@dataclass(frozen=True)
class Passing:
    """What came of signals sent to a launcher."""

    delays: dict[str, float]
    """Seconds until the worker had it, by the signal that was sent; missing if it never did."""

    came: tuple[str, ...]
    """The signals that the worker got."""

    trouble: str = ""
    """Why nothing could be sent, in a line."""


def pass_signals_on(seconds: float, folder: Path, guard: Guard) -> Passing:
    """Start one worker under a launcher, and send the launcher a notice, then a stop."""
    notes = folder / "notes"
    command = [*_launcher(), "--nproc", "1", "--device", "cpu", *_trial("signals", notes, seconds + _START_SECONDS)]
    # A launch within a batch job would become one of all its nodes.
    env = {name: value for name, value in _environ(folder).items() if not name.startswith("SLURM_")}
    delays: dict[str, float] = {}
    with Child(command, folder, guard, env, grace=1.0) as child:
        if not _wait_until(lambda: _read(notes).get("stage") == "waiting for signals", child, seconds + _START_SECONDS):
            return Passing({}, (), child.last_words() or "the worker did not start in time")
        for signum in (signal.SIGUSR2, signal.SIGTERM):
            known = len(_came(notes))
            sent = time.time()
            child.send(signum)
            if _wait_until(lambda known=known: len(_came(notes)) > known, child, _PASS_SECONDS):  # type: ignore[misc]
                delays[signum.name] = max(0.0, max(_came(notes).values()) - sent)
    return Passing(delays, tuple(_came(notes)))


def assess_workers(rehearsal: Rehearsal) -> Finding:
    """Whether the launch went well, and if not, how far it came and what to look at."""
    check = "workers"
    if rehearsal.went_well:
        return passed(check, f"{_count(rehearsal.nproc, 'worker')} started, on {_devices(rehearsal.workers)}")
    doing, advice = _STAGES[_stage(rehearsal)]
    return failed(check, f"the launch failed while {doing}: {rehearsal.cause}", advice)


def assess_all_reduce(rehearsal: Rehearsal) -> Finding | None:
    """How long a sum over all ranks takes; None if it was not come to.

    Algorithm bandwidth is bytes through time; bus bandwidth is that times 2(n-1)/n, what each link carries, and
    so the same for any number n of ranks on the same links (NCCL tests, PERFORMANCE.md).
    """
    check = "all-reduce"
    worker = next((worker for worker in rehearsal.workers if worker.all_reduce), None)
    if worker is None:
        return None
    n, backend = worker.world_size, "nccl" if rehearsal.device == "cuda" else "gloo"
    latency, large = worker.all_reduce["tiny_seconds"], worker.all_reduce["large_seconds"]
    if n == 1:
        return passed(check, f"{backend} starts; there is nothing to measure with one rank (type --nproc)")
    algorithm = worker.all_reduce["large_bytes"] / large
    bus = algorithm * 2 * (n - 1) / n
    found = (
        f"{backend}, {n} ranks: {latency * 1e6:.0f} µs for one number; {_gigabytes(algorithm)} for 64 MiB "
        f"(algorithm bandwidth; bus bandwidth {_gigabytes(bus)}); medians of the slowest rank"
    )
    figures = {
        "latency_seconds": latency,
        "algorithm_bytes_per_second": algorithm,
        "bus_bytes_per_second": bus,
        "ranks": n,
    }
    if bus >= _SLOW_BYTES_PER_SECOND[rehearsal.device]:
        return passed(check, found, **figures)
    return warned(check, found, _SLOW_ADVICE[backend], **figures)


def assess_signals(workers: Sequence[Worker]) -> Finding | None:
    """Whether the workers can hear the signals that stop or warn them; None without a worker that tells."""
    check = "signals"
    heard = [worker.signals for worker in workers if worker.signals]
    if not heard:
        return None
    states = {name: next((one[name] for one in heard if one[name] != "ok"), "ok") for name in heard[0]}
    wrong = {name: state for name, state in states.items() if state != "ok"}
    if not wrong:
        return passed(check, f"{', '.join(states)} are neither blocked nor ignored in the workers")
    found = ", ".join(f"{name} is {state}" for name, state in wrong.items()) + " in the workers"
    if wrong == {"SIGINT": "ignored"}:
        advice = "to stop a job in the background of a script, send SIGTERM; or start it in the foreground"
        return warned(check, found, advice)
    return failed(
        check,
        f"{found}: they could not save when told to stop",
        "start the launch from a program that leaves signals alone (no trap '' TERM in a shell, no signal mask that "
        "a parent set before it started this)",
    )


def assess_passing(passing: Passing) -> Finding:
    """Whether the launcher passes a notice and a stop on."""
    check = "passing on"
    if passing.trouble:
        return failed(check, f"no worker could be started to try: {passing.trouble}", "see the checks above")
    missing = [name for name in ("SIGUSR2", "SIGTERM") if name not in passing.delays]
    if missing:
        return failed(
            check,
            f"a worker did not get {' and '.join(missing)} within {_PASS_SECONDS:g} s of the launcher",
            "see the check of signals: the launcher itself may have been started with them blocked or ignored",
        )
    slowest = max(passing.delays.values())
    found = ", ".join(f"{name} in {delay * 1000:.0f} ms" for name, delay in passing.delays.items())
    return passed(check, f"from the launcher to a worker: {found}", slowest_seconds=slowest)


_STAGES = {
    "starting": ("starting the workers", "look at the message; minetorch-launch --dry-run shows the plan"),
    "using the device": (
        "using the device",
        "look at nvidia-smi: is the GPU free, in exclusive mode, or older than this torch supports?",
    ),
    "connecting to the store": (
        "connecting to the workers' store",
        "let TCP through between the nodes, and check that each node's name has its real address",
    ),
    "connecting the nodes": (
        "connecting the nodes with one another",
        "start the doctor on every node, with the same --nodes and --rdzv; let TCP through between them",
    ),
    "making the process group": (
        "making the process group",
        "let TCP through between the nodes, and set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the right interface; "
        "NCCL_DEBUG=INFO shows more",
    ),
    "all-reduce": ("summing over all ranks", "NCCL_DEBUG=INFO shows more; try NCCL_P2P_DISABLE=1, NCCL_IB_DISABLE=1"),
    "leaving": ("leaving the process group", "look at the message"),
    "done": ("ending", "look at the message"),
}

_SLOW_ADVICE = {
    "gloo": "set GLOO_SOCKET_IFNAME to the fastest interface; with more workers than cores they wait for one another",
    "nccl": "look at nvidia-smi topo -m, and with NCCL_DEBUG=INFO at what NCCL chose: NCCL_SOCKET_IFNAME or InfiniBand "
    "between nodes, P2P within one",
}


def _stage(rehearsal: Rehearsal) -> str:
    """Of the worker that failed first, else of the one that came the least far."""
    stages = {worker.rank: worker.stage for worker in rehearsal.workers}
    if rehearsal.failed_rank in stages:
        return stages[rehearsal.failed_rank]
    return "starting" if len(stages) < rehearsal.nproc else min(stages.values(), key=list(_STAGES).index)


def _environ(folder: Path) -> dict[str, str]:
    # torch makes a folder for what it compiles in the system's temporary one, and leaves it there.
    return {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}


def _launcher() -> list[str]:
    return [sys.executable, "-m", "minetorch_launch"]


def _trial(kind: str, notes: Path, seconds: float) -> list[str]:
    return ["--grace", "5", "-m", "minetorch_launch.doctor.trial", kind, str(notes), str(seconds)]


def _read_workers(notes: Path) -> tuple[Worker, ...]:
    files = sorted(notes.glob("worker_*.json"), key=lambda file: int(file.stem.partition("_")[2]))
    return tuple(_worker(json.loads(file.read_text(encoding="utf-8"))) for file in files)


def _worker(told: dict[str, Any]) -> Worker:
    nodes = (
        Node(node["host"], node["address"], node["interface"], tuple(Link(**link) for link in node["links"]))
        for node in told.get("nodes", ())
    )
    return Worker(
        host=told["host"],
        rank=told["rank"],
        world_size=told["world_size"],
        stage=told["stage"],
        signals=told.get("signals", {}),
        device=told.get("device", {}),
        nodes=tuple(nodes),
        all_reduce=told.get("all_reduce", {}),
        private_bytes=told.get("private_bytes", 0),
    )


def _read(notes: Path) -> dict[str, Any]:
    with suppress(FileNotFoundError):
        told: dict[str, Any] = json.loads((notes / "worker_0.json").read_text(encoding="utf-8"))
        return told
    return {}


def _came(notes: Path) -> dict[str, float]:
    came: dict[str, float] = _read(notes).get("came", {})
    return came


def _wait_until(is_so: Callable[[], bool], child: Child, seconds: float) -> bool:
    """Whether it became so in time, and before the child ended."""
    end = time.monotonic() + seconds
    while not is_so():
        if child.wait(0.01) is not None or time.monotonic() > end:
            return is_so()
    return True


def _first_failure(report: Path) -> tuple[int | None, str]:
    """The rank that failed first, and why, in a line."""
    try:
        first = json.loads(report.read_text(encoding="utf-8"))["first"]
    except (OSError, ValueError, KeyError):
        return None, ""
    return first["rank"], f"rank {first['rank']} on {first['host']}: {first['cause']}"


def _devices(workers: Sequence[Worker]) -> str:
    kinds = [_device(worker.device) for worker in workers]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))


def _device(device: dict[str, Any]) -> str:
    if device["kind"] == "cpu":
        return f"CPU with {_count(device['threads'], 'thread')}"
    major, minor = device["capability"]
    gib = 1 << 30
    free = f"{device['free_bytes'] / gib:.0f} of {device['total_bytes'] / gib:.0f} GiB free"
    return f"{device['name']} (capability {major}.{minor}, {free})"


def _gigabytes(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.2f} GB/s"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
