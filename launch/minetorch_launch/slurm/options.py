"""What a SLURM job adds to the options that the user left open. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from minetorch_launch.errors import UsageError
from minetorch_launch.options import LaunchOptions
from minetorch_launch.plan import Deadline
from minetorch_launch.slurm.environment import JobTimes, SlurmJob

_JOIN_SECONDS = 60.0
"""One srun of ours starts all launchers within seconds: a launcher that is missing for longer does not come."""

_WARNING_SECONDS, _WARNING_SHARE = 120.0, 0.1


def fill_in(options: LaunchOptions, job: SlurmJob, has_gpus: bool, find_address: Callable[[str], str]) -> LaunchOptions:
    """Add what the job says to what the user did not say.

    Args:
        options: the user's.
        job: seen from this launcher; one launcher runs on each of its hosts.
        has_gpus: whether the workers run on GPUs, one each; without GPUs, ``job.workers`` of them run here.
        find_address: of a host, as the other hosts reach it; may raise UsageError.

    Raises:
        UsageError: several launchers run on this node, or the user asks for more nodes than the job has.
    """
    if job.tasks_here > 1:
        raise UsageError(
            f"srun has started {job.tasks_here} launchers on {job.hosts[job.node]}, but one starts all workers of "
            f"its node: type srun --ntasks-per-node=1 minetorch-launch --nproc {job.tasks_here} …, or, with the "
            "batch script's --ntasks-per-node, no srun at all"
        )
    options = dataclasses.replace(options, nproc=options.nproc or (None if has_gpus else job.workers))
    nodes = choose_nodes(options, len(job.hosts))
    if nodes[1] == 1:
        return options
    endpoint = options.rdzv_endpoint
    if endpoint is None:
        address = (job.batch and job.batch.address) or find_address(job.hosts[0])
        endpoint = f"[{address}]:{job.port}" if ":" in address else f"{address}:{job.port}"
    return dataclasses.replace(
        options,
        nodes=nodes,
        node_rank=job.node,
        rdzv_endpoint=endpoint,
        rdzv_id=options.rdzv_id or job.rdzv_id,
        join_timeout=options.join_timeout or (_JOIN_SECONDS if job.batch else None),
    )


def choose_nodes(options: LaunchOptions, count: int) -> tuple[int, int]:
    """The minimum and maximum of nodes: all ``count`` nodes of the job unless the user says otherwise.

    Raises:
        UsageError: the user asks for more.
    """
    minimum, maximum = options.nodes or (count, count)
    if minimum > count:
        raise UsageError(f"--nodes {minimum} is more than the {count} of this job: ask SLURM for more (sbatch --nodes)")
    return minimum, min(maximum, count)


def make_deadline(times: JobTimes, preempt_before: float | None, now: float) -> Deadline | None:
    """The end of a job, and when to warn the workers of it; None if the end is unknown.

    Args:
        times: of the job.
        preempt_before: seconds between the warning and the end; None: 120, at most a tenth of the job's time.
        now: seconds of the Unix clock. Where the limit is unknown, the time that is left replaces it.

    Raises:
        UsageError: the warning would come before the job begins, in every run of it.
    """
    if times.end is None:
        return None
    limit = max(0.0, times.limit or times.end - now)
    if preempt_before is None:
        return Deadline(times.end, min(_WARNING_SECONDS, _WARNING_SHARE * limit))
    if preempt_before >= limit:
        raise UsageError(
            f"--preempt-before {preempt_before:g} leaves no time in a job of {limit:.0f} s: type fewer seconds, or ask "
            "SLURM for more (--time)"
        )
    return Deadline(times.end, preempt_before)
