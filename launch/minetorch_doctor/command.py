"""The ``minetorch-doctor`` command, also ``minetorch-launch doctor``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from minetorch_doctor.checks import DoctorOptions, run_checks
from minetorch_doctor.result import Result, all_ok, as_json, as_row, summary
from minetorch_launch import arguments
from minetorch_launch.errors import LaunchError, UsageError
from minetorch_launch.slurm import cli_tools, srun
from minetorch_launch.validators import check_seconds

_DESCRIPTION = "Check whether a launch with these options would work here, and say what to do where it would not."
_EPILOG = (
    "All other options are those of minetorch-launch: --nproc (on CPUs 2), --device, --threads, and on each of several "
    "nodes --nodes, --rdzv-endpoint, --node-rank. In a SLURM job the doctor starts itself on each node. "
    "Exit code: 0 if no check failed (warnings allowed), 1 if one failed, 2 for a usage error."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the doctor with the command line ``argv``, and return its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        options, print_json = parse(words)
        code = _run_in_slurm(words, options)
        return _run(options, print_json=print_json) if code is None else code
    except LaunchError as error:
        sys.stderr.write(f"minetorch-doctor: error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parse(argv: Sequence[str]) -> tuple[DoctorOptions, bool]:
    """The options, and whether to print JSON.

    Raises:
        UsageError: with one line that says what to type instead.
        SystemExit: the help was asked for, and shown.
    """
    parser = _Parser(prog="minetorch-doctor", description=_DESCRIPTION, epilog=_EPILOG, allow_abbrev=False)
    parser.add_argument("--storage", metavar="URL", help="write, read, list and delete where checkpoints are saved")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="for each check with processes")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")
    given, words = parser.parse_known_args(argv)
    request = arguments.read(words, os.environ)
    odd = [word for word in request.own if word.split("=")[0] in ("--sbatch", "--dry-run", "--version")]
    if odd or request.target is not None:
        raise UsageError(f"the doctor runs its own script: leave out {' '.join(odd) or request.target}")
    if given.storage == "":
        raise UsageError("--storage needs a value: type a folder or a URL")
    check_seconds("--timeout", given.timeout, "the time for each check that starts processes", above_zero=True)
    return DoctorOptions(request.options, request.own, storage=given.storage, timeout=given.timeout), given.json


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise one line in place of the whole usage."""
        raise UsageError(f"{message[:400]}: type minetorch-doctor --help for the options")


def _run_in_slurm(argv: Sequence[str], options: DoctorOptions) -> int | None:
    """In a SLURM job's batch script, start the doctor on each node, as the launcher does; None elsewhere."""
    job = cli_tools.find_job(os.environ) if options.launch.node_rank is None else None
    if job is None or job.kind == "task" or not srun.has_srun():
        return None
    command = [sys.executable, "-m", "minetorch_doctor", *argv]
    return srun.run_on_nodes(job, options.launch, command, environ=os.environ, say=partial(print, file=sys.stderr))


def _run(options: DoctorOptions, *, print_json: bool) -> int:
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _exit)
    host, columns = socket.gethostname(), shutil.get_terminal_size((120, 24)).columns
    live = sys.stdout.isatty() and not print_json
    lines = [f"minetorch-doctor on {host}"]

    def show(result: Result) -> None:
        lines.append(as_row(result, columns))
        if live:
            _flush(lines)

    results = run_checks(options, show)
    _flush([as_json(host, results)] if print_json else [*lines, summary(results)])
    return 0 if all_ok(results) else 1


def _exit(signum: int, frame: object) -> NoReturn:
    """Let an exception end the children and remove the temporary files."""
    sys.exit(128 + signum)


def _flush(lines: list[str]) -> None:
    """Write all lines at once: the doctors of several nodes may share one output."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
    lines.clear()
