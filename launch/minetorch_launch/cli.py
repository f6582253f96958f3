"""The ``minetorch-launch`` command."""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from minetorch_launch import arguments
from minetorch_launch.errors import StartError, StoppedEarlyError, StoppedError, UsageError, WorkerFailedError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` and return its exit code.

    Without ``argv``, the process's own is run, and the process ended at once when its job is done: Python
    would spend 0.3 s on taking apart the torch that the launcher had to import.
    """
    if argv is None and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # paths and arguments need not be text
    code = _exit_code(sys.argv[1:] if argv is None else list(argv))
    if argv is None and "torch" in sys.modules:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _exit_code(argv: list[str]) -> int:
    try:
        return _run(argv)
    except UsageError as error:
        sys.stderr.write(f"minetorch-launch: error: {error}\n")
        return error.exit_code
    except (StartError, StoppedError, StoppedEarlyError) as error:
        sys.stderr.write(f"minetorch-launch: {error}\n")
        return error.exit_code
    except WorkerFailedError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(argv: list[str]) -> int:
    if argv[:1] == ["doctor"]:  # a script of this name is started as ./doctor
        from minetorch_doctor import command

        return command.main(argv[1:])
    try:
        Path.cwd()
    except OSError:
        raise UsageError("the folder that you are in is gone: cd to one that is there") from None
    request = arguments.read(argv)
    wants, options, target = request.wants, request.options, request.target
    if wants.help:
        sys.stdout.write(arguments.help_text())
        return 0
    if wants.version:
        from importlib.metadata import version  # 20 ms that no other call need wait for

        sys.stdout.write(f"minetorch-launch {version('minetorch')}\n")
        return 0
    for line in request.ignored:
        _say(f"minetorch-launch: {line}")
    if target is None:
        raise UsageError("there is nothing to run: type minetorch-launch [OPTIONS] SCRIPT [ARGS]...")
    if wants.sbatch is not None:
        from minetorch_launch.slurm import sbatch

        return sbatch.run(request, say=_say)
    # Who numbers the nodes starts the launchers on them, too.
    if "SLURM_JOB_ID" in os.environ and options.node_rank is None:
        from minetorch_launch.slurm import batch

        return batch.run_in_job(argv, target, options, dry_run=wants.dry_run, say=_say)
    from minetorch_launch import launcher  # after the answers above: it needs what they do without

    if wants.dry_run:
        sys.stdout.write(launcher.plan_launch(target, options).text() + "\n")
        return 0
    launcher.launch(target, options, own_process=True)
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
