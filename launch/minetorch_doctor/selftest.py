"""A small job under the real launcher, and what its workers report: starts ``minetorch_doctor.selftest_worker``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from minetorch_doctor.child import run_child
from minetorch_doctor.result import Result

LARGE_BYTES = 64 << 20
"""Of the all-reduce that measures bandwidth."""

_SLOW_GLOO, _SLOW_GPU = 0.1e9, 1e9
"""Bytes per second of bus bandwidth below which the network is probably the wrong one: about gigabit Ethernet for gloo,
a tenth of PCIe or 100 Gbit/s for NCCL."""

STAGES = {
    "starting the workers": "read the message; minetorch-launch --dry-run shows the plan",
    "using the device": "look at nvidia-smi: is the GPU free, in exclusive mode, or older than this torch supports?",
    "connecting the nodes": "start the doctor on every node with the same options, open all TCP ports between the "
    "nodes, and check that each node's name has its real address",
    "creating the process group": "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the right network interface, and "
    "open all TCP ports between the nodes; NCCL_DEBUG=INFO shows more",
    "running all-reduce": "NCCL_DEBUG=INFO shows more; try NCCL_P2P_DISABLE=1 or NCCL_IB_DISABLE=1",
}
"""What a worker does, in order, and what to look at when it fails there."""


@dataclass
class WorkerReport:
    """What one worker has found so far."""

    local_rank: int
    rank: int
    world_size: int
    stage: str = "starting the workers"
    device: str = ""
    backend: str = "gloo"
    nodes: list[str] = field(default_factory=list)  # each node's name and address; empty with one node
    broken_links: list[str] = field(default_factory=list)
    latency: float = 0.0  # seconds of an all-reduce of one number
    large_seconds: float = 0.0  # of an all-reduce of LARGE_BYTES; 0 before it was measured

    def save(self, folder: Path) -> None:
        """Write the report; the doctor may read at the same moment."""
        new = folder / f"worker_{self.rank}.new"
        new.write_text(json.dumps(asdict(self)), encoding="utf-8")
        new.replace(new.with_suffix(".json"))


@dataclass(frozen=True)
class SelfTest:
    """How the job ended on this node."""

    nproc: int
    code: int | None  # of the launcher; None if it had to be stopped
    reason: str  # why the job failed, in one line
    workers: tuple[WorkerReport, ...]  # by rank; without those that never reported
    failed_rank: int | None = None  # the first that failed, if the launcher says so


def run_selftest(options: Sequence[str], nproc: int, seconds: float, join_seconds: float, folder: Path) -> SelfTest:
    """Launch the workers as a training job would be launched, with an empty ``folder`` for what they report.

    The workers end themselves after ``seconds``; ``join_seconds`` more may pass until they and the other nodes start.
    """
    logs, limit = folder / "logs", seconds + join_seconds
    command = [sys.executable, "-m", "minetorch_launch", *options, "--log-dir", str(logs), "--grace", "5"]
    command += ["-m", "minetorch_doctor.selftest_worker", str(folder), str(seconds)]
    code, _, error = run_child(command, folder, limit)
    rank, reason = _read_failure(logs / "failure.json")
    reason = reason or error if code is not None else f"it took longer than {limit:g} s"
    reports = [WorkerReport(**json.loads(file.read_text())) for file in folder.glob("worker_*.json")]
    return SelfTest(nproc, code, reason, tuple(sorted(reports, key=lambda report: report.rank)), rank)


def check_workers(test: SelfTest) -> Result:
    """Whether the job ended well, and if not, where it failed."""
    if test.code == 0 and len(test.workers) == test.nproc:
        devices = [worker.device for worker in test.workers]
        shown = ", ".join(f"{devices.count(device)} on {device}" for device in dict.fromkeys(devices))
        return Result("workers", "pass", f"started and ended: {shown}")
    stages = {worker.rank: worker.stage for worker in test.workers}
    slowest = next(stage for stage in STAGES if stage in stages.values() or len(stages) < test.nproc)
    stage = stages.get(-1 if test.failed_rank is None else test.failed_rank, slowest)
    return Result("workers", "fail", f"the job failed while {stage}: {test.reason}", STAGES[stage])


def check_all_reduce(report: WorkerReport) -> Result:
    """Latency and bandwidth of a sum over all ranks.

    Algorithm bandwidth is bytes per time. Bus bandwidth is that times 2(n-1)/n: the traffic on each link, which is the
    same for any number n of ranks on the same links (NCCL tests, PERFORMANCE.md).
    """
    ranks, algorithm = report.world_size, LARGE_BYTES / report.large_seconds
    if ranks == 1:
        return Result("all-reduce", "pass", f"{report.backend} starts; one rank has nothing to measure")
    bus = algorithm * 2 * (ranks - 1) / ranks
    found = (
        f"{report.backend}, {ranks} ranks: {report.latency * 1e6:.0f} µs for one number; {algorithm / 1e9:.2f} GB/s "
        f"for 64 MiB (algorithm bandwidth; bus bandwidth {bus / 1e9:.2f} GB/s)"
    )
    if bus >= (_SLOW_GLOO if report.backend == "gloo" else _SLOW_GPU):
        return Result("all-reduce", "pass", found)
    advice = "nvidia-smi topo -m and NCCL_DEBUG=INFO show which links NCCL uses: set NCCL_SOCKET_IFNAME, or enable RDMA"
    if report.backend == "gloo":
        advice = "set GLOO_SOCKET_IFNAME to the fastest network interface; more workers than cores are slow as well"
    return Result("all-reduce", "warn", found, advice)


def _read_failure(file: Path) -> tuple[int | None, str]:
    """Which rank failed first according to the launcher, and why, in one line."""
    with suppress(OSError, ValueError, KeyError):
        first = json.loads(file.read_text(encoding="utf-8"))["first"]
        return first["rank"], f"rank {first['rank']} on {first['host']}: {first['cause']}"
    return None, ""
