"""Asks SLURM's commands, and has SLURM requeue a job. In a container none of them may be there."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from minetorch_launch.errors import UsageError
from minetorch_launch.plan import Deadline
from minetorch_launch.slurm.environment import JobTimes, SlurmJob, parse_duration
from minetorch_launch.slurm.options import make_deadline

_ANSWER_SECONDS = 20.0
_PROC = Path("/proc")


def find_job(environ: Mapping[str, str]) -> SlurmJob | None:
    """The SLURM job that this process is part of.

    Raises:
        UsageError: a variable of SLURM has an invalid value.
    """
    return SlurmJob.from_env(environ, find_own_step()) if "SLURM_JOB_ID" in environ else None


def find_own_step(pid: str = "self", proc: Path = _PROC) -> str | None:
    """The step that process ``pid`` is part of, from the titles of its ancestors; None if they are not visible."""
    with suppress(OSError, IndexError):
        while pid not in ("0", "1"):
            title = (proc / pid / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if found := re.match(r"slurmstepd: \[(\S+)\]", title):
                return found[1]
            pid = (proc / pid / "stat").read_text().rpartition(")")[2].split()[1]
    return None


def is_slurmstepd(pid: int, proc: Path = _PROC) -> bool:
    """Whether process ``pid`` is SLURM's own, which signals all processes of a step at once.

    A sender outside of this process's PID namespace (a container's) has number 0, and is assumed to be SLURM's.
    """
    with suppress(OSError):
        return pid == 0 or (proc / str(pid) / "cmdline").read_bytes().startswith(b"slurmstepd:")
    return False


def ask(*command: str) -> str | None:
    """The output of a SLURM command; None if it is not installed here, fails or does not answer."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True
        ).stdout
    return None


def show_job(job: SlurmJob) -> dict[str, str]:
    """What ``scontrol show job`` says; empty without an answer."""
    return _fields(ask("scontrol", "--oneliner", "show", "job", job.id))


def find_times(job: SlurmJob, now: float) -> JobTimes:
    """The job's time limit: from the environment, else from ``squeue``."""
    if job.times.end is not None or job.batch is not None:
        return job.times
    left, _, limit = (ask("squeue", "--noheader", f"--jobs={job.id}", "--format=%L|%l") or "").partition("|")
    seconds = parse_duration(left)
    return JobTimes(None if seconds is None else int(now) + seconds, parse_duration(limit))


def find_deadline(job: SlurmJob, preempt_before: float | None) -> Deadline | None:
    """The job's end, and when to warn the workers of it (see `make_deadline`); None if the end is unknown.

    Raises:
        UsageError: the warning would come before the job begins.
    """
    now = time.time()
    return make_deadline(find_times(job, now), preempt_before, now)


def find_address(host: str) -> str:
    """The name or address at which the other nodes reach ``host``: no name server need know SLURM's node names.

    Raises:
        UsageError: there is none.
    """
    if _has_address(host):
        return host
    shown = _fields(ask("scontrol", "--oneliner", "show", "node", host))
    for name in ("NodeAddr", "NodeHostName"):
        if name in shown and _has_address(shown[name]):
            return shown[name]
    raise UsageError(
        f"{socket.gethostname()} cannot find the address of {host}, the first node of this job, by name or from "
        "scontrol: type --rdzv-endpoint with its address, or let /etc/hosts or DNS know it"
    )


def is_out_of_time(shown: Mapping[str, str]) -> bool:
    """Whether SLURM ends a job for its time limit, by what :func:`show_job` says: it may still be requeued."""
    return shown.get("JobState") in ("COMPLETING", "TIMEOUT") and shown.get("Reason") == "TimeLimit"


def requeue(job: SlurmJob, say: Callable[[str], None]) -> None:
    """Have SLURM put the job into the queue again, or say why this is not possible."""
    hint = f"`scontrol requeue {job.id}` or sbatch it again"
    refusal = _why_not_requeued(show_job(job))
    if shutil.which("scontrol") is None:
        refusal = f"there is no scontrol here; where there is one, type {hint}"
    if refusal is not None:
        say(f"minetorch-launch: job {job.id} is not requeued: {refusal}")
        return
    # Said first: SLURM ends this process as soon as it has the order.
    say(f"minetorch-launch: requeueing job {job.id}: it continues from its last checkpoint")
    if ask("scontrol", "requeue", job.id) is None:
        say(f"minetorch-launch: scontrol did not requeue job {job.id}: type {hint}")


def _why_not_requeued(shown: Mapping[str, str]) -> str | None:
    if not shown or shown.get("JobState") == "RUNNING" or is_out_of_time(shown):
        if shown.get("BatchFlag") == "0":
            return "it is interactive; type the same command again in a new allocation"
        if shown.get("Requeue") == "0":
            return "it was submitted with --no-requeue, the default of some clusters; submit it again with --requeue"
        return None
    return f"SLURM is ending it already (it is {shown.get('JobState')})"


def _has_address(host: str) -> bool:
    with suppress(OSError, UnicodeError):
        return bool(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    return False


def _fields(text: str | None) -> dict[str, str]:
    """``JobId=1 JobState=RUNNING …`` by name."""
    return dict(word.split("=", 1) for word in (text or "").split() if "=" in word)
