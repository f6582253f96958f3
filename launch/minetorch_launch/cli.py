"""The ``minetorch-launch`` command."""

from __future__ import annotations

import io
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from minetorch_launch.errors import LaunchError, StoppedError, UsageError
from minetorch_launch.validators import check_platform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minetorch_launch.options import LaunchOptions
    from minetorch_launch.slurm.environment import SlurmJob
    from minetorch_launch.target import Target


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``, the process's own by default, and return its exit code."""
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # paths and arguments need not be text
    try:
        check_platform()
        return _run(sys.argv[1:] if argv is None else list(argv))
    except UsageError as error:
        _say(f"minetorch-launch: error: {error}")
        return error.exit_code
    except StoppedError as error:  # the launch has shown it: this process may wait for nobody who reads
        return error.exit_code
    except LaunchError as error:
        _say(f"minetorch-launch: {str(error).removeprefix('minetorch-launch: ')}")
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _open_closed_streams() -> None:
    """Open /dev/null in place of each standard stream that the caller has closed.

    Otherwise the next file or socket takes its number, and the launcher writes the output of the workers into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115 - takes the lowest free number, which is the stream's own
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _run(argv: list[str]) -> int:
    if argv[:1] == ["doctor"]:
        from minetorch_doctor import command

        return command.main(argv[1:])
    try:
        Path.cwd()
    except OSError:
        raise UsageError("the working folder does not exist any more: cd to one that exists") from None
    from minetorch_launch import arguments

    request = arguments.read(argv, os.environ)
    wants, options, target = request.wants, request.options, request.target
    if wants.help:
        sys.stdout.write(arguments.help_text())
        return 0
    if wants.version:
        from importlib.metadata import version  # 20 ms that no other call need wait for

        sys.stdout.write(f"minetorch-launch {version('minetorch')}\n")
        return 0
    for line in request.notes:
        _say(f"minetorch-launch: {line}")
    if target is None:
        raise UsageError("there is nothing to run: type minetorch-launch [OPTIONS] SCRIPT [ARGS]...")
    if wants.sbatch is not None:
        from minetorch_launch.slurm import sbatch

        return sbatch.run(request, say=_say)
    # Launchers whose nodes are numbered already were started by something else.
    if "SLURM_JOB_ID" in os.environ and options.node_rank is None:
        from minetorch_launch.slurm import srun

        launch = partial(run_here, target, options, dry_run=wants.dry_run)
        return srun.run_in_job(argv, options, launch, dry_run=wants.dry_run, say=_say)
    return run_here(target, options, dry_run=wants.dry_run)


def run_here(target: Target, options: LaunchOptions, job: SlurmJob | None = None, *, dry_run: bool = False) -> int:
    """Carry out a launch in this process, or print its plan, and return the exit code.

    Raises:
        LaunchError: as `minetorch_launch.launch`.
    """
    import asyncio

    from minetorch_launch import launcher
    from minetorch_launch.errors import StoppedEarlyError
    from minetorch_launch.worker.task import make_task

    plan = launcher.plan_launch(target, options, job)
    if dry_run:
        sys.stdout.write(plan.text() + "\n")
        return 0
    outcome = asyncio.run(launcher.run(launcher.Launch(plan, make_task(target, own_process=True), job)))
    if outcome.failure is not None:
        return outcome.failure.exit_code
    if outcome.stopped_early:
        raise StoppedEarlyError
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
