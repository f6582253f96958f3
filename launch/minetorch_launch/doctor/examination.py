"""All checks, in order: what is near and quick first. No check hangs, and none ends the examination."""

from __future__ import annotations

import os
import resource
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from minetorch_launch import devices
from minetorch_launch.doctor import cgroup, init, limits, network, rehearsal, software, storage
from minetorch_launch.doctor.finding import Finding, failed, passed
from minetorch_launch.errors import UsageError
from minetorch_launch.guard import Guard
from minetorch_launch.target import Module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from minetorch_launch.plan import LaunchOptions, LaunchPlan
    from minetorch_launch.slurm.job import SlurmJob

__all__ = ["Wanted", "examine", "within"]

_LOCAL_SECONDS = 10.0
_START_SECONDS = 30.0
_CPU_WORKERS = 2
_PER_WORKER = 300 << 20


@dataclass(frozen=True)
class Wanted:
    """What to examine."""

    launch: LaunchOptions
    """The launch that is to work."""

    job: SlurmJob | None = None
    """The SLURM job of which this is a launcher; it says what ``launch`` leaves open."""

    storage: str | None = None
    """Where checkpoints are to be kept."""

    seconds: float = 60.0
    """For each check that starts processes, after they have started."""


def examine(wanted: Wanted, say: Callable[[Finding], None]) -> list[Finding]:
    """Make every check, and tell each finding as it comes."""
    findings: list[Finding] = []

    def take(more: Iterable[Finding | None]) -> None:
        for finding in more:
            if finding is not None:
                findings.append(finding)
                say(finding)

    plan, checks = _local_checks(wanted)
    for name, check in checks:
        take(within(_LOCAL_SECONDS, name, check))
    with Guard() as guard, tempfile.TemporaryDirectory(prefix="minetorch-doctor-", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        guard.add("d", folder)
        if plan is not None:
            take(_rehearse(wanted, plan, _folder(folder, "rehearsal"), guard))
            take([rehearsal.assess_passing(rehearsal.pass_signals_on(_LOCAL_SECONDS, _folder(folder, "stop"), guard))])
        if wanted.storage is not None:
            limit = wanted.seconds
            take([storage.probe_storage(wanted.storage, limit, _folder(folder, "storage"), guard)])
    return findings


def within(seconds: float, name: str, check: Callable[[], Iterable[Finding | None]]) -> list[Finding | None]:
    """What ``check`` finds, or that it has failed or hung: a resolver or a file system may not answer at all."""
    found: list[Finding | None] = []
    error: list[Exception] = []

    def run() -> None:
        try:
            found.extend(check())
        except Exception as problem:
            error.append(problem)

    # A daemon: one that hangs in the kernel cannot be ended, and shall not keep the doctor from ending.
    thread = threading.Thread(target=run, name=f"minetorch-doctor-{name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return [failed(name, f"no answer within {seconds:g} s", "look for a name server or a file system that hangs")]
    if error:
        return [failed(name, f"could not be looked at: {error[0]} ({type(error[0]).__name__})", "see the message")]
    return found


_Checks = list[tuple[str, "Callable[[], Iterable[Finding | None]]"]]


def _local_checks(wanted: Wanted) -> tuple[LaunchPlan | None, _Checks]:
    """The plan, unless it cannot be made, and what can be looked at without starting anything."""
    checks: _Checks = [
        ("versions", lambda: software.assess_versions(software.read_versions())),
        (
            "GPU driver",
            lambda: [software.assess_driver(devices.torch_cuda_build(), devices.find_driver(), wanted.launch.device)],
        ),
    ]
    try:
        plan = _plan(wanted)
    except UsageError as error:
        found = str(error)
        return None, [*checks, ("plan", lambda: [failed("plan", found, "change the options as it says")])]
    nproc, endpoint = len(plan.workers), plan.rdzv
    checks += [
        ("cores", lambda: [limits.assess_cores(plan.node.cores, cgroup.read_limits().cores, nproc)]),
        ("limits", lambda: _limits(nproc)),
        ("shared memory", lambda: [limits.assess_shared_memory(limits.read_capacity(Path("/dev/shm")), nproc)]),
        ("temporary", lambda: [_temporary()]),
        ("host name", lambda: [_own_name(plan)]),
        ("local ports", lambda: [network.assess_port_range(network.read_port_range(), nproc, plan.nodes[1])]),
        ("process 1", lambda: [init.assess_init(init.read_init())]),
    ]
    if wanted.job is not None:
        job = wanted.job
        checks.append(("SLURM", lambda: [_slurm(job, plan)]))
    if endpoint is not None:
        checks.append(
            (
                "rendezvous",
                lambda: [network.examine_rendezvous(endpoint, plan.node_rank, network.read_port_range())],
            )
        )
    return plan, checks


def _plan(wanted: Wanted) -> LaunchPlan:
    """The launch's own plan; but where it would be one lone worker on CPUs, two, that they may talk to each other."""
    from minetorch_launch.launcher import plan_launch

    trial = Module("minetorch_launch.doctor.trial")
    plan = plan_launch(trial, wanted.launch, wanted.job)
    alone = plan.device == "cpu" and len(plan.workers) == 1 and not plan.many_nodes
    if wanted.launch.nproc is None and alone and plan.node.cores >= _CPU_WORKERS:
        return plan_launch(trial, replace(wanted.launch, nproc=_CPU_WORKERS), wanted.job)
    return plan


def _temporary() -> Finding:
    folder = tempfile.gettempdir()
    return limits.assess_temporary(folder, limits.read_capacity(Path(folder)).free)


def _own_name(plan: LaunchPlan) -> Finding:
    known = plan.rdzv is not None and network.knows_interface(plan.rdzv, os.environ)
    return network.assess_own_name(network.read_own_name(), plan.many_nodes, known)


def _slurm(job: SlurmJob, plan: LaunchPlan) -> Finding:
    """What the job says, so that a user sees what a launch takes from it."""
    of = f"node {job.node} of {len(job.hosts)} ({job.hosts[job.node]})"
    cpus = f"{job.cpus} CPUs" if job.cpus else "no word on CPUs"
    end = f"ends {time.strftime('%F %T', time.localtime(plan.deadline.at))}" if plan.deadline else "no known end"
    return passed("SLURM", f"job {job.id}, {of}: {cpus}, {end}")


def _limits(nproc: int) -> list[Finding | None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return [
        limits.assess_open_files(soft, hard),
        limits.assess_processes(_processes_left(), nproc),
        limits.assess_locked_memory(locked, limits.has_rdma()),
    ]


def _processes_left() -> int | None:
    of_container = cgroup.read_limits().processes_left
    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if most == resource.RLIM_INFINITY or os.geteuid() == 0:  # the kernel does not hold root to it
        return of_container
    left = most - limits.count_threads(os.geteuid())
    return left if of_container is None else min(left, of_container)


def _rehearse(wanted: Wanted, plan: LaunchPlan, folder: Path, guard: Guard) -> list[Finding | None]:
    """Launch, and look at what the workers tell."""
    nproc = len(plan.workers)
    left, limit = _memory_left()
    join = min(plan.join_timeout, wanted.seconds) if plan.many_nodes else 0.0
    went = rehearsal.rehearse(
        launch_words(plan, join),
        nproc,
        plan.device,
        seconds=wanted.seconds,
        wait=wanted.seconds + join + _START_SECONDS,
        folder=folder,
        guard=guard,
    )
    findings = [
        limits.assess_memory(left, limit, went.private_bytes or _PER_WORKER, nproc),
        rehearsal.assess_workers(went),
        rehearsal.assess_signals(went.workers),
    ]
    if went.nodes:
        findings += [network.assess_links(went.nodes), network.assess_clocks(went.nodes)]
    return [*findings, rehearsal.assess_all_reduce(went)]


def launch_words(plan: LaunchPlan, join_seconds: float) -> list[str]:
    """The options of the rehearsal's launch: those of the launch that is to work, in so far as they matter here."""
    words = ["--nproc", str(len(plan.workers)), "--device", plan.device, "--threads", str(plan.threads)]
    words += ["--start-method", plan.start_method]
    if plan.rdzv is not None:
        # The run id that a launch derives from its command would differ: each node has a folder of its own.
        words += ["--nodes", "{}:{}".format(*plan.nodes), "--rdzv", str(plan.rdzv), "--run-id", f"doctor-{plan.run_id}"]
        words += ["--join-timeout", f"{join_seconds:g}"]
    if plan.node_rank is not None:
        words += ["--node-rank", str(plan.node_rank)]
    return words


def _memory_left() -> tuple[int | None, int | None]:
    """Bytes that this process and its children may still take, and the container's limit if that is what counts."""
    of_machine, container = limits.available_memory(), cgroup.read_limits()
    if container.memory_left is None or (of_machine is not None and of_machine < container.memory_left):
        return of_machine, None
    return container.memory_left, container.memory_limit


def _folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder
