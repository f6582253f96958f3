"""All checks in order, the quick ones first. No check ends the others."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from minetorch_doctor import machine, network, selftest, software, storage
from minetorch_doctor.result import Result
from minetorch_launch.devices import HostInfo, find_driver, find_host, torch_cuda_build
from minetorch_launch.options import LaunchOptions
from minetorch_launch.slurm.cli_tools import find_job
from minetorch_launch.validators import parse_endpoint

_START_SECONDS = 30.0
_CPU_WORKERS = 2


@dataclass(frozen=True)
class DoctorOptions:
    """What to check."""

    launch: LaunchOptions
    """The launch that is to work."""

    words: tuple[str, ...] = ()
    """The same as on the command line."""

    storage: str | None = None
    """Where checkpoints are saved."""

    timeout: float = 60.0
    """Seconds for each check that starts processes."""

    @property
    def endpoint(self) -> str | None:
        """Where the nodes meet; None with one node, and where SLURM says it."""
        return self.launch.rdzv_endpoint if (self.launch.nodes or (1, 1))[1] > 1 else None


def run_checks(options: DoctorOptions, show: Callable[[Result], None]) -> list[Result]:
    """Run every check, and show each result as soon as it is there."""
    results: list[Result] = []

    def run(name: str, check: Callable[[], Iterable[Result]]) -> None:
        try:
            found = list(check())
        except Exception as error:
            found = [Result(name, "fail", f"this check broke: {error} ({type(error).__name__})", "read the message")]
        results.extend(found)
        for result in found:
            show(result)

    launch, host = options.launch, find_host(os.environ)
    has_gpus = bool(host.gpus) and launch.device != "cpu"
    nproc = _count_workers(launch, host, has_gpus=has_gpus)
    run("software", lambda: _check_software(host, launch.device))
    run("machine", lambda: _check_machine(nproc, has_gpus=has_gpus))
    if options.endpoint is not None:
        endpoint = parse_endpoint(options.endpoint)
        run("rendezvous", lambda: [network.check_rendezvous(endpoint, launch.node_rank)])
    with tempfile.TemporaryDirectory(prefix="minetorch-doctor-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        run("workers", lambda: _run_selftest(options, nproc, folder))
        if (url := options.storage) is not None:
            run("storage", lambda: [storage.check_storage(url, options.timeout, folder)])
    return results


def _count_workers(launch: LaunchOptions, host: HostInfo, *, has_gpus: bool) -> int:
    """Workers on this node: outside of a SLURM job at least two, which can then communicate."""
    if isinstance(launch.nproc, int):
        return launch.nproc
    if has_gpus:
        return len(host.gpus)
    job = find_job(os.environ)
    return host.cores if launch.nproc == "cores" else job.workers if job is not None else _CPU_WORKERS


def _check_software(host: HostInfo, device: str) -> Iterable[Result]:
    yield software.check_versions(software.read_versions())
    yield software.check_driver(torch_cuda_build(), find_driver(), device, len(host.gpus))


def _check_machine(nproc: int, *, has_gpus: bool) -> Iterable[Result]:
    shm = shutil.disk_usage("/dev/shm")
    yield machine.check_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield machine.check_shared_memory(shm.free, shm.total, nproc)
    yield machine.check_memory(machine.read_memory(), machine.read_container_memory(), nproc, has_gpus=has_gpus)


def _run_selftest(options: DoctorOptions, nproc: int, folder: Path) -> Iterable[Result]:
    join = min(options.launch.join_timeout or options.timeout, options.timeout)
    words = [*options.words, "--nproc", str(nproc), "--join-timeout", f"{join:g}"]
    if options.endpoint is not None and options.launch.rdzv_id is None:
        words += ["--rdzv-id", "doctor"]  # the launcher's own id would differ, since each node has another folder
    test = selftest.run_selftest(words, nproc, options.timeout, _START_SECONDS + join, folder)
    yield selftest.check_workers(test)
    for report in test.workers[:1]:
        if report.nodes:
            yield network.check_links(report)
        if report.large_seconds:
            yield selftest.check_all_reduce(report)
