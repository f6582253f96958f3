"""The ``minetorch-launch`` command."""

from __future__ import annotations

import argparse
import atexit
import difflib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from minetorch_launch.errors import StartError, StoppedError, UsageError, WorkerFailedError
from minetorch_launch.plan import DEVICES, START_METHODS, LaunchOptions
from minetorch_launch.target import Module, Script

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main", "parse"]

_USAGE = "minetorch-launch [OPTIONS] SCRIPT [ARGS]...\n       minetorch-launch [OPTIONS] -m MODULE [ARGS]..."
_DESCRIPTION = "Start one worker process per device, keep them together, and explain what went wrong."
_EPILOG = (
    "Exit code: that of the worker that failed first (128 + n if signal n ended it), "
    "2 for a usage error, 130 after Ctrl-C."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` and return its exit code.

    Without ``argv``, the process's own is run, and the process ended at once when its job is done: Python
    would spend 0.3 s on taking apart the torch that the launcher had to import.
    """
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
    except (StartError, StoppedError) as error:
        sys.stderr.write(f"minetorch-launch: {error}\n")
        return error.exit_code
    except WorkerFailedError as error:
        sys.stderr.write(f"{error.report.text()}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(argv: list[str]) -> int:
    own, target = _split(argv)
    given = _parser().parse_args(own)
    if given.help:
        sys.stdout.write(_parser().format_help())
        return 0
    if given.version:
        from importlib.metadata import version  # 20 ms that no other call need wait for

        sys.stdout.write(f"minetorch-launch {version('minetorch')}\n")
        return 0
    options = _options(given)
    if target is None:
        raise UsageError("there is nothing to run: type minetorch-launch [OPTIONS] SCRIPT [ARGS]...")
    from minetorch_launch import launcher  # after the answers above: it needs what they do without

    if given.dry_run:
        sys.stdout.write(launcher.plan_launch(target, options).text() + "\n")
        return 0
    launcher.launch(target, options, own_process=True)
    return 0


def parse(argv: Sequence[str]) -> tuple[LaunchOptions, Script | Module | None]:
    """What a command line asks for, and of what.

    Raises:
        UsageError: with one line that says what to type instead.
    """
    own, target = _split(list(argv))
    return _options(_parser().parse_args(own)), target


def _split(argv: list[str]) -> tuple[list[str], Script | Module | None]:
    """Part our own options from the target and its arguments, which are passed on untouched.

    By hand, because argparse interprets ``--`` and prefixes of options in what follows the script as well.
    """
    valued = {name for action in _parser()._actions if action.nargs != 0 for name in action.option_strings}
    at = 0
    while at < len(argv):
        word = argv[at]
        if word == "--":
            return argv[:at], _script(argv[at + 1 :])
        if word.startswith("-m"):  # "-mMODULE" in one word, too, as python takes it
            name, *args = [word[2:], *argv[at + 1 :]] if word != "-m" else argv[at + 1 :] or [""]
            if not name:
                raise UsageError("-m needs a module: type -m MODULE [ARGS]...")
            return argv[:at], Module(name, tuple(args))
        if not word.startswith("-") or word == "-":
            return argv[:at], _script(argv[at:])
        at += 2 if word in valued else 1
    return argv, None


def _script(words: list[str]) -> Script | None:
    return Script(words[0], tuple(words[1:])) if words else None


def _options(given: argparse.Namespace) -> LaunchOptions:
    return LaunchOptions(
        nproc=None if given.nproc == "auto" else _whole("--nproc", given.nproc, " or auto"),
        device=given.device,
        max_restarts=_whole("--max-restarts", given.max_restarts),
        log_dir=Path(given.log_dir) if given.log_dir else None,
        threads=None if given.threads is None else _whole("--threads", given.threads),
        start_method=given.start_method,
        preload=tuple(given.preload),
        grace=_seconds("--grace", given.grace),
    )


def _whole(option: str, text: str, else_: str = "") -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is not a whole number: type e.g. {option} 2{else_}") from None


def _seconds(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is not a number of seconds: type e.g. {option} 30") from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage."""
        unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0].split("=")[0]
        if not message.startswith("unrecognized"):
            raise UsageError(f"{message}: type minetorch-launch --help for the options")
        known = [name for action in self._actions for name in action.option_strings]
        close = difflib.get_close_matches(unknown, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "type minetorch-launch --help for those there are"
        raise UsageError(f"unknown option {unknown}: {hint} (a script's own options go after the script)")


def _parser() -> _Parser:
    parser = _Parser(
        prog="minetorch-launch",
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        add_help=False,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--nproc", default="auto", metavar="N|auto", help="workers; auto: one per visible GPU, else 1 (default)")
    add("--device", default="auto", metavar="|".join(DEVICES), help="what to compute on (default: auto)")
    add("--max-restarts", default="0", metavar="N", help="restarts of all workers after a failure (default: 0)")
    add("--log-dir", metavar="DIR", help="write DIR/rank_N.log for each worker, DIR/failure.json on failure")
    add("--threads", metavar="N", help="OMP_NUM_THREADS of a worker (default: yours, else usable cores shared out)")
    add("--start-method", default="forkserver", metavar="|".join(START_METHODS), help="default: forkserver")
    add("--preload", action="append", default=[], metavar="MODULE", help="import once for all workers; repeatable")
    add("--grace", default="30", metavar="SECONDS", help="from telling a worker to end to killing it (default: 30)")
    add("--dry-run", action="store_true", help="print the plan and start nothing")
    add("--version", action="store_true", help="print the version")
    add("-h", "--help", action="store_true", help="print this")
    return parser
