"""All checks in order, the quick ones first. No check ends the others."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minetorch_launch.joining import parse_endpoint
from minetorch_launch.slurm.commands import find_job

from minetorch_doctor import machine, network, selftest, software, storage
from minetorch_doctor.result import Result
from minetorch_launch.devices import find_driver, find_node, torch_cuda_build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from minetorch_launch.plan import LaunchOptions

__all__ = ["DoctorOptions", "run_checks"]

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

    launch, endpoint = options.launch, options.launch.rdzv
    gpus = len(find_node(os.environ).gpus) if launch.device != "cpu" else 0
    job = find_job(os.environ)
    # Outside of a SLURM job at least two, which can then communicate.
    nproc = launch.nproc or gpus or (job.workers if job else _CPU_WORKERS)
    run("software", lambda: _check_software(launch.device))
    run("machine", lambda: _check_machine("cuda" if gpus else "cpu", nproc))
    if endpoint is not None:
        run("rendezvous", lambda: [network.check_rendezvous(parse_endpoint(endpoint), launch.node_rank)])
    with tempfile.TemporaryDirectory(prefix="minetorch-doctor-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        run("workers", lambda: _run_selftest(options, nproc, folder))
        if (url := options.storage) is not None:
            run("storage", lambda: [storage.check_storage(url, options.timeout, folder)])
    return results


def _check_software(device: str) -> Iterable[Result]:
    yield software.check_versions(software.read_versions())
    yield software.check_driver(torch_cuda_build(), find_driver(), device)


def _check_machine(device: str, nproc: int) -> Iterable[Result]:
    yield machine.check_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    shm = shutil.disk_usage("/dev/shm")
    yield machine.check_shared_memory(shm.free, shm.total, nproc)
    yield machine.check_memory(machine.read_memory(), machine.read_container_memory(), device, nproc)


def _run_selftest(options: DoctorOptions, nproc: int, folder: Path) -> Iterable[Result]:
    join = min(options.launch.join_timeout, options.timeout)
    words = [*options.words, "--nproc", str(nproc), "--join-timeout", f"{join:g}"]
    if options.launch.rdzv is not None:
        # The launcher derives the id from its command, which differs: each node has a folder of its own.
        words += ["--rdzv-id", options.launch.run_id or "doctor"]
    test = selftest.run_selftest(words, nproc, options.timeout, _START_SECONDS + join, folder)
    yield selftest.check_workers(test)
    for report in test.workers[:1]:
        if report.nodes:
            yield network.check_links(report)
        if report.large_seconds:
            yield selftest.check_all_reduce(report)
