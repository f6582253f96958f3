"""Asks SLURM, and has it requeue a job: the part of `slurm` that acts. Every answer may be missing in a container."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from minetorch_launch.errors import UsageError
from minetorch_launch.slurm.job import BATCH_VARIABLE, Deadline, SlurmJob, Times, make_deadline, parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "ask",
    "find_address",
    "find_deadline",
    "find_job",
    "find_times",
    "is_out_of_time",
    "is_slurmstepd",
    "own_step",
    "requeue",
    "requeue_own",
    "show_job",
]

_ANSWER_SECONDS = 20.0
_PROC = Path("/proc")


def find_job(environ: Mapping[str, str]) -> SlurmJob | None:
    """The SLURM job that this process is part of.

    Raises:
        UsageError: a variable of SLURM's is senseless.
    """
    return SlurmJob.from_env(environ, own_step()) if "SLURM_JOB_ID" in environ else None


def own_step(pid: str = "self", proc: Path = _PROC) -> str | None:
    """The step that process ``pid`` is part of, off its ancestors' titles; None if none of them can be seen."""
    with suppress(OSError, IndexError):
        while pid not in ("0", "1"):
            title = (proc / pid / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if found := re.match(r"slurmstepd: \[(\S+)\]", title):
                return found[1]
            pid = (proc / pid / "stat").read_text().rpartition(")")[2].split()[1]
    return None


def is_slurmstepd(pid: int, proc: Path = _PROC) -> bool:
    """Whether process ``pid`` is SLURM's own, which signals all processes of a step at once.

    A sender outside of our process-id namespace (a container's), which is numbered 0, is taken for it.
    """
    with suppress(OSError):
        return pid == 0 or (proc / str(pid) / "cmdline").read_bytes().startswith(b"slurmstepd:")
    return False


def ask(*command: str) -> str | None:
    """What a command of SLURM's answers; None if it is not installed here, fails or does not answer."""
    path = shutil.which(command[0])
    if path is None:
        return None
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [path, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ANSWER_SECONDS
        )
        return done.stdout if done.returncode == 0 else None
    return None


def show_job(job: SlurmJob) -> dict[str, str]:
    """What ``scontrol show job`` says; empty without an answer."""
    return _fields(ask("scontrol", "--oneliner", "show", "job", job.id))


def find_times(job: SlurmJob, now: float | None = None) -> Times:
    """How long the job may run: off the environment, else from ``squeue``, else from ``scontrol``."""
    if job.times.end is not None or job.batch is not None:
        return job.times
    now = time.time() if now is None else now
    answer = (ask("squeue", "--noheader", f"--jobs={job.id}", "--format=%L|%l") or "").strip()
    if "|" in answer:
        left, limit = map(parse_duration, answer.split("|")[:2])
        return Times(None if left is None else now + left, limit)
    shown = show_job(job)
    with suppress(KeyError, ValueError):
        end = datetime.fromisoformat(shown["EndTime"]).timestamp()
        return Times(end, parse_duration(shown.get("TimeLimit", "")))
    return Times()


def find_deadline(job: SlurmJob, asked: float | None, now: float | None = None) -> Deadline | None:
    """When to give the workers notice; None if the job's end is unknown.

    Args:
        job: the job.
        asked: seconds before the end, None for the default (see :func:`~minetorch_launch.slurm.job.make_deadline`).
        now: second of the Unix clock.

    Raises:
        UsageError: the notice would come before the job has begun.
    """
    now = time.time() if now is None else now
    return make_deadline(find_times(job, now), asked, now)


def find_address(host: str) -> str:
    """By what name or address the other nodes reach ``host``: SLURM's node names need not be in any name server.

    Raises:
        UsageError: there is none.
    """
    with suppress(OSError, UnicodeError):
        socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return host
    for name in ("NodeAddr", "NodeHostName"):
        known = _fields(ask("scontrol", "--oneliner", "show", "node", host)).get(name, host)
        with suppress(OSError, UnicodeError):
            socket.getaddrinfo(known, None, type=socket.SOCK_STREAM)
            return known
    raise UsageError(
        f"{socket.gethostname()} cannot find the address of {host}, the first node of this job, by name or by asking "
        "scontrol: type --rdzv with an address of it, or have /etc/hosts or DNS know it"
    )


def is_out_of_time(shown: Mapping[str, str]) -> bool:
    """Whether SLURM is ending a job for its time limit, by what :func:`show_job` says: it may still be requeued."""
    return shown.get("JobState") in ("COMPLETING", "TIMEOUT") and shown.get("Reason") == "TimeLimit"


def requeue(job: SlurmJob, say: Callable[[str], None]) -> bool:
    """Have SLURM start the job again from the queue, or say why that cannot be."""
    again = f"`scontrol requeue {job.id}` or sbatch it again"
    if shutil.which("scontrol") is None:
        say(f"minetorch-launch: job {job.id} is not requeued: there is no scontrol here; where there is, type {again}")
        return False
    shown = show_job(job)
    refusal = _why_not_requeued(shown)
    if refusal is not None:
        say(f"minetorch-launch: job {job.id} is not requeued: {refusal}")
        return False
    # Said before, because SLURM ends this process as soon as it has heard.
    say(f"minetorch-launch: requeueing job {job.id}: it goes on from its last checkpoint")
    if ask("scontrol", "requeue", job.id) is None:
        say(f"minetorch-launch: scontrol did not requeue job {job.id}: type {again}")
        return False
    return True


def requeue_own(job: SlurmJob, environ: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Requeue a job that was stopped early, where that is this launcher's business.

    It is the first node's, when the user has typed ``srun minetorch-launch``. A launcher in the batch step does it
    for those that it has started.
    """
    if job.node == 0 and BATCH_VARIABLE not in environ:
        requeue(job, say)


def _why_not_requeued(shown: Mapping[str, str]) -> str | None:
    if not shown:
        return None  # no answer, but it may yet take the order
    if shown.get("BatchFlag") == "0":
        return "it is interactive; type the same command again in a new allocation"
    if shown.get("Requeue") == "0":
        return "it was submitted with --no-requeue, or this cluster does so by default; sbatch it again, with --requeue"
    if shown.get("JobState") == "RUNNING" or is_out_of_time(shown):
        return None
    return f"SLURM is ending it already (it is {shown.get('JobState')})"


def _fields(text: str | None) -> dict[str, str]:
    """``JobId=1 JobState=RUNNING …`` by name."""
    return dict(word.split("=", 1) for word in (text or "").split() if "=" in word)
