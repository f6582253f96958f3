"""Carries out a launch in this process: plans it, builds the parts, runs the agent."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from minetorch_launch import devices, numa
from minetorch_launch.agent import Agent
from minetorch_launch.attempt import Outcome
from minetorch_launch.errors import StoppedError, UsageError
from minetorch_launch.failures.report import FailureReport, WorkerFailedError
from minetorch_launch.options import LaunchOptions
from minetorch_launch.output.relay import Relay
from minetorch_launch.output.terminal import terminal_columns, wants_colour
from minetorch_launch.plan import LaunchPlan, make_plan
from minetorch_launch.processes.spawner import Reaper
from minetorch_launch.rendezvous.endpoints import is_this_machine
from minetorch_launch.rendezvous.many_nodes import ManyNodes
from minetorch_launch.rendezvous.membership import Settings, Timing
from minetorch_launch.rendezvous.single_node import SingleNode
from minetorch_launch.slurm.environment import SlurmJob
from minetorch_launch.stop_signals import Stop, StopSignals
from minetorch_launch.target import Target, check_target, find_module, likely_imports
from minetorch_launch.worker.task import Task
from minetorch_launch.workers.starter import WorkerStarter

_OUT_AND_ERR = 1, 2
_MAX_TMPDIR = 60
_FLUSH_SECONDS = 30.0
_FLUSH_SECONDS_AFTER_A_STOP = 1.0
"""For how long a reader may take nothing of what is still to be shown."""


@dataclass(frozen=True)
class Launch:
    """All that `run` needs."""

    plan: LaunchPlan
    task: Task
    job: SlurmJob | None = None
    streams: tuple[int, int] = _OUT_AND_ERR
    """Descriptors that the workers' stdout and stderr go to, in whole lines."""

    shows_failure: bool = True
    """Show the report of a failure, last of all."""


def plan_launch(
    target: Target,
    options: LaunchOptions,
    job: SlurmJob | None = None,
    streams: tuple[int, int] = _OUT_AND_ERR,
) -> LaunchPlan:
    """Plan a launch: look at the machine and the target, and start nothing.

    Raises:
        UsageError: if the target or an option cannot work.
    """
    check_target(target)
    for module in options.preload:
        if not find_module(module, target.import_root):
            raise UsageError(f"--preload {module}: there is no such module; give a name that `import` would take")
    if options.log_dir is not None:
        _check_log_dir(options.log_dir)
    out, err = streams
    host = devices.find_host(os.environ)
    deadline = None
    if job is not None:
        from minetorch_launch.slurm.cli_tools import find_address, find_deadline
        from minetorch_launch.slurm.options import fill_in

        host = replace(host, cores=job.cores(host.cores))
        has_gpus = bool(host.gpus) and options.device != "cpu"
        options = fill_in(options, job, has_gpus, find_address)
        deadline = find_deadline(job, options.preempt_before)
    return make_plan(
        target,
        options,
        host,
        os.environ,
        columns=terminal_columns(err) or terminal_columns(out),
        imports=likely_imports(target),
        deadline=deadline,
        in_job=job is not None,
        topology=numa.read_topology(os.sched_getaffinity(0)) if options.numa_binding else None,
    )


async def run(launch: Launch, parent: int | None = None) -> Outcome:
    """Carry out a launch on this node.

    Args:
        launch: what to do.
        parent: a pipe whose closing stops the launch as SIGTERM does: the process at its other end has ended.

    Raises:
        LaunchError: as `minetorch_launch.launch`, but for a worker's failure, which the outcome holds.
    """
    plan = launch.plan
    signal_mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    if plan.options.log_dir is not None:
        _prepare_log_dir(plan.options.log_dir)
    relay = Relay(
        *launch.streams,
        log_file=plan.log_file,
        node=plan.host.short_name if plan.many_nodes else None,
        shows=lambda rank, stream: plan.shows(rank - starter.first_rank, rank, "out" if stream == "out" else "err"),
        prefix=plan.has_prefix(len(plan.workers) + plan.many_nodes, os.isatty(launch.streams[0])),
        colour=wants_colour(os.environ),
    )
    flush_seconds = _FLUSH_SECONDS
    async with AsyncExitStack() as stack:
        stack.push_async_callback(lambda: relay.close(flush_seconds))
        folder = _make_folder()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)  # a reaper that was killed leaves it
        reaper = Reaper.start(folder)
        stack.callback(reaper.end)
        _raise_descriptor_limit()  # after the reaper's start: a script finds the user's own limit
        starter = WorkerStarter(
            plan,
            launch.task,
            signal_mask=signal_mask,
            reaper=reaper,
            relay=relay,
            streams=launch.streams,
            folder=folder,
        )
        agent = Agent(plan, lambda: _open_rendezvous(plan, starter, relay), starter, relay)
        reached = _reached_workers(launch.job)
        agent.signals = stack.enter_context(StopSignals(agent.post, plan.preempt_signals, reached))
        if parent is not None:
            _stop_with_parent(parent, agent)
        try:
            outcome = await agent.run()
        except StoppedError as error:
            relay.say(f"minetorch-launch: {error}")
            flush_seconds = _FLUSH_SECONDS_AFTER_A_STOP
            raise
        if outcome.failure is not None and plan.options.log_dir is not None:
            _write_failure(plan.options.log_dir, outcome.failure, relay)
        if outcome.failure is not None and launch.shows_failure:
            relay.say(str(WorkerFailedError(outcome.failure, shown_elsewhere=outcome.shown_elsewhere)))
        return outcome
    raise AssertionError  # for mypy, which takes an exit stack for one that may swallow exceptions


async def _open_rendezvous(plan: LaunchPlan, starter: WorkerStarter, relay: Relay) -> SingleNode | ManyNodes:
    if not plan.many_nodes:
        # The name may be that of a service which does not lead here yet; on one node nobody else needs it.
        own = plan.local_addr if plan.local_addr is not None and is_this_machine(plan.local_addr) else "127.0.0.1"
        return SingleNode(host=plan.host.name, nproc=len(plan.workers), address=own)
    assert plan.rdzv_endpoint is not None

    async def start_store_process() -> socket.socket:
        _, control = await starter.start_store()
        return control

    settings = Settings(
        plan.rdzv_endpoint,
        plan.rdzv_id,
        plan.nodes,
        host=plan.host.name,
        nproc=len(plan.workers),
        node_rank=plan.options.node_rank,
        join_timeout=plan.join_timeout,
        local_addr=plan.local_addr,
        say=relay.say,
        timing=Timing(first_quiet=plan.options.last_call_timeout),
    )
    return await ManyNodes.open(settings, start_store_process)


def _make_folder() -> Path:
    """A folder that goes with the launch; workers make sockets in it, whose paths have at most 107 bytes."""
    is_short = len(os.fsencode(tempfile.gettempdir())) <= _MAX_TMPDIR
    return Path(tempfile.mkdtemp(prefix="minetorch-launch-", dir=None if is_short else "/tmp"))


def _stop_with_parent(parent: int, agent: Agent) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.remove_reader(parent)
        agent.post(Stop(signal.SIGTERM))

    loop.add_reader(parent, stop)


def _reached_workers(job: SlurmJob | None) -> Callable[[int], bool] | None:
    """What knows by its process id whether the sender of a signal has sent it to the workers, too."""
    if job is None:
        return None
    from minetorch_launch.slurm.cli_tools import is_slurmstepd

    return is_slurmstepd


def _raise_descriptor_limit() -> None:
    """Some nine descriptors a worker: the usual soft limit of 1,024 is for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _failure_file(log_dir: Path) -> Path:
    return log_dir / "failure.json"


def _write_failure(log_dir: Path, report: FailureReport, relay: Relay) -> None:
    try:
        _failure_file(log_dir).write_text(report.to_json() + "\n", encoding="utf-8")
    except OSError as error:  # the report on the screen and the exit code are what counts
        relay.say(f"minetorch-launch: cannot write {_failure_file(log_dir)} ({error.strerror})")


def _check_log_dir(log_dir: Path) -> None:
    """Raise unless ``log_dir`` can be made or written to; make nothing yet."""
    try:
        nearest = next((place for place in (log_dir, *log_dir.absolute().parents) if place.exists()), Path("/"))
    except OSError as error:
        raise UsageError(f"--log-dir {log_dir}: {error.strerror}; give a folder that you may write to") from None
    if not nearest.is_dir():
        raise UsageError(f"--log-dir {log_dir}: {nearest} is a file; give the path of a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"--log-dir {log_dir}: {nearest} is not writable; give a folder that you may write to")


def _prepare_log_dir(log_dir: Path) -> None:
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        _failure_file(log_dir).unlink(missing_ok=True)  # an earlier launch's, not this one's
    except OSError as error:
        raise UsageError(f"--log-dir {log_dir}: {error.strerror}; give a folder that you may write to") from None
