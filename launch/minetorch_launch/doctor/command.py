"""The command line of ``minetorch-launch doctor``."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from minetorch_launch.arguments import parse
from minetorch_launch.doctor.examination import Wanted, examine
from minetorch_launch.doctor.finding import as_json, as_row, is_well, summary
from minetorch_launch.errors import LaunchError, UsageError, in_brief
from minetorch_launch.slurm import batch, commands

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

    from minetorch_launch.doctor.finding import Finding

__all__ = ["main", "parse_doctor"]

_HELP = """\
usage: minetorch-launch doctor [--storage URL] [--timeout SECONDS] [--json] [LAUNCH OPTIONS]

Say whether a launch with these options would work here, and what to do where it would not. Nothing is left behind.

  --storage URL      try writing, reading, listing and deleting where checkpoints are to be kept
  --timeout SECONDS  for each check that starts processes (default: 60)
  --json             print one JSON object instead of the table
  -h, --help         print this

LAUNCH OPTIONS are those of minetorch-launch: --nproc (here 2 by default on CPUs), --device, --threads, --start-method;
and with several nodes, on each of them: --nodes, --rdzv, --node-rank, --run-id. Those that a check has no use for
are accepted and change nothing. In a SLURM job it runs on each of the job's nodes, as a launch would.

Exit code: 0 if nothing failed (warnings allowed), 1 if something did, 2 for a usage error.
"""
_VALUED = ("--storage", "--timeout")
_SECONDS_MOST = 1_000_000
_FLAGS = ("--json", "-h", "--help")


def main(argv: Sequence[str]) -> int:
    """Run the doctor with the words after ``doctor``, and return its exit code."""
    try:
        wanted, own = parse_doctor(argv)
    except UsageError as error:
        sys.stderr.write(f"minetorch-launch doctor: error: {error}\n")
        return error.exit_code
    if "--help" in own or "-h" in own:
        sys.stdout.write(_HELP)
        return 0
    try:
        return _run_where_it_belongs(argv, wanted, as_json_object="--json" in own)
    except LaunchError as error:
        sys.stderr.write(f"minetorch-launch doctor: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parse_doctor(argv: Sequence[str]) -> tuple[Wanted, dict[str, str]]:
    """What to examine, and the doctor's own options as given.

    Raises:
        UsageError: with one line that says what to type instead.
    """
    own, rest, words = {}, [], iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name in _VALUED:
            own[name] = value if equals else next(words, "")
            if not own[name]:
                raise UsageError(f"{name} needs a value: type minetorch-launch doctor --help")
        elif name in _FLAGS:
            if equals:
                raise UsageError(f"{name} takes no value: type minetorch-launch doctor --help")
            own[word] = ""
        else:
            rest.append(word)
    options, target = parse(rest)
    if target is not None:
        raise UsageError(f"there is nothing to run here, but {target} was given: leave the script out")
    seconds = _seconds(own.get("--timeout", "60"))
    return Wanted(options, storage=own.get("--storage"), seconds=seconds), own


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _SECONDS_MOST:
        raise UsageError(f"--timeout {in_brief(text)} is no number of seconds above 0: type e.g. --timeout 60")
    return seconds


def _run_where_it_belongs(argv: Sequence[str], wanted: Wanted, *, as_json_object: bool) -> int:
    """Here; or in a SLURM job's batch script, as a launch would, on each of its nodes."""
    job = None
    if "SLURM_JOB_ID" in os.environ and wanted.launch.node_rank is None:
        job = commands.find_job(os.environ)
    if job is not None and job.place != "task":
        if batch.has_srun():
            command = [sys.executable, "-m", "minetorch_launch.doctor", *argv]
            return batch.run(job, wanted.launch, command, environ=os.environ, say=_say)
        job = job.on_this_node()
    with _stops_raise():
        return _run(replace(wanted, job=job), as_json_object=as_json_object)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _run(wanted: Wanted, *, as_json_object: bool) -> int:
    host, columns = socket.gethostname(), shutil.get_terminal_size((120, 24)).columns
    live = sys.stdout.isatty() and not as_json_object

    def say(finding: Finding) -> None:
        if live:
            sys.stdout.write(as_row(finding, columns) + "\n")
            sys.stdout.flush()

    head = f"minetorch-launch doctor on {host}\n"
    sys.stdout.write(head if live else "")
    findings = examine(wanted, say)
    if as_json_object:
        sys.stdout.write(as_json(host, findings) + "\n")
    elif live:
        sys.stdout.write(summary(findings) + "\n")
    else:
        # In one piece: the doctors of several nodes may share one output.
        rows = [as_row(finding, columns) for finding in findings]
        sys.stdout.write(head + "\n".join([*rows, summary(findings)]) + "\n")
    return 0 if is_well(findings) else 1


@contextmanager
def _stops_raise() -> Iterator[None]:
    """Have SIGTERM and SIGHUP leave this process in good order, so that what it started ends before it."""

    def leave(signum: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + signum)

    taken = {}
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) is signal.SIG_DFL:
                taken[signum] = signal.signal(signum, leave)
    try:
        yield
    finally:
        for signum, before in taken.items():
            signal.signal(signum, before)
