"""The command line's words -> what they ask for. Torchrun's spellings of the same are understood, too."""

from __future__ import annotations

import argparse
import difflib
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from minetorch_launch import checks, torchrun
from minetorch_launch.errors import UsageError, in_brief, in_one_line
from minetorch_launch.plan import DEVICES, SHOWS, START_METHODS, LaunchOptions
from minetorch_launch.target import Module, Script

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Request", "help_text", "parse", "read"]

_USAGE = (
    "minetorch-launch [OPTIONS] SCRIPT [ARGS]...\n"
    "       minetorch-launch [OPTIONS] -m MODULE [ARGS]...\n"
    "       minetorch-launch doctor [OPTIONS]"
)
_DESCRIPTION = (
    "Start one worker process per device, keep them together, and explain what went wrong. "
    "`minetorch-launch doctor` looks whether this machine is fit for it."
)
_EPILOG = (
    "Exit code: that of the worker that failed first (128 + n if signal n ended it), 75 if the workers stopped early "
    "with all work saved, 124 if they hung, 2 for a usage error, 130 after Ctrl-C."
)


@dataclass(frozen=True)
class Request:
    """A command line, read."""

    own: tuple[str, ...]
    """The launcher's own options, torchrun's spellings put into ours."""

    rest: tuple[str, ...]
    """What follows them, as given: the target and its arguments."""

    target: Script | Module | None
    options: LaunchOptions
    wants: argparse.Namespace
    """What is asked for beside a launch: ``help``, ``version``, ``dry_run``, ``sbatch``, ``slurm``."""

    ignored: tuple[str, ...] = ()
    """Torchrun's options that were left out, in words for the user."""


def read(argv: Sequence[str]) -> Request:
    """What a command line asks for, and of what.

    Raises:
        UsageError: with one line that says what to type instead.
    """
    words = torchrun.translate(argv, _valued_options())
    target: Script | Module | None = None
    if words.rest:
        target = (Module if words.is_module else Script)(words.rest[0], words.rest[1:])
    given = _parser().parse_args(words.own)
    if given.slurm and given.sbatch is None:
        raise UsageError("--slurm is for sbatch: type --sbatch as well, or leave it out")
    rest = ("-m", *words.rest) if words.is_module else words.rest
    return Request(words.own, rest, target, _options(given), given, words.ignored)


def parse(argv: Sequence[str]) -> tuple[LaunchOptions, Script | Module | None]:
    """The launch that a command line asks for.

    Raises:
        UsageError: with one line that says what to type instead.
    """
    request = read(argv)
    return request.options, request.target


def help_text() -> str:
    """What ``--help`` prints."""
    return _parser().format_help()


def _valued_options() -> frozenset[str]:
    actions = _parser()._actions
    return frozenset(name for action in actions if action.nargs not in (0, "?") for name in action.option_strings)


def _options(given: argparse.Namespace) -> LaunchOptions:
    return LaunchOptions(
        nproc=None if given.nproc == "auto" else _whole("--nproc", given.nproc, " or auto"),
        device=given.device,
        max_restarts=_whole("--max-restarts", given.max_restarts),
        log_dir=None if given.log_dir is None else _folder("--log-dir", given.log_dir),
        threads=None if given.threads is None else _whole("--threads", given.threads),
        start_method=given.start_method,
        preload=tuple(given.preload),
        grace=_seconds("--grace", given.grace),
        notice_signals=None if given.notice_signals is None else _signal_names(given.notice_signals),
        show=given.show,
        hang_timeout=None if given.hang_timeout == "auto" else _seconds("--hang-timeout", given.hang_timeout),
        nodes=_nodes(given.nodes),
        rdzv=given.rdzv,
        node_rank=None if given.node_rank is None else _whole("--node-rank", given.node_rank),
        run_id=given.run_id,
        notice_before=None if given.notice_before is None else _seconds("--notice-before", given.notice_before),
        join_timeout=_seconds("--join-timeout", given.join_timeout),
    )


def _folder(option: str, text: str) -> Path:
    checks.name(option, text)
    return Path(text)


def _nodes(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    least, colon, most = text.partition(":")
    try:
        return int(least), int(most) if colon else int(least)
    except ValueError:
        raise UsageError(
            f"--nodes {in_brief(text)} is no number of nodes: type e.g. --nodes 4, or --nodes 2:4"
        ) from None


def _signal_names(text: str) -> tuple[str, ...]:
    return tuple(_signal_name(word.strip()) for word in text.split(",") if word.strip())


def _signal_name(word: str) -> str:
    """``SIGUSR2`` for ``USR2``, ``usr2`` or ``12``."""
    if word.isdecimal() and len(word) < 4 and int(word) in {int(member) for member in signal.Signals}:
        return signal.Signals(int(word)).name
    return "SIG" + word.upper().removeprefix("SIG")


def _whole(option: str, text: str, else_: str = "") -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{option} {in_brief(text)} is not a whole number: type e.g. {option} 2{else_}") from None


def _seconds(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option} {in_brief(text)} is not a number of seconds: type e.g. {option} 30") from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise one line instead of printing the whole usage."""
        message = in_one_line(message)
        unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0].split("=")[0]
        if not message.startswith("unrecognized"):
            raise UsageError(f"{message}: type minetorch-launch --help for the options")
        known = [name for action in self._actions for name in action.option_strings]
        close = difflib.get_close_matches(unknown, known, n=1, cutoff=0.75)
        hint = f"did you mean {close[0]}?" if close else "type minetorch-launch --help for the options"
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
    add("--notice-signals", metavar="SIG,...", help="tell workers to stop soon (default: USR2, in SLURM TERM, too)")
    add("--hang-timeout", default="auto", metavar="SECONDS", help="without a step: a hang (default: 300 or more)")
    add("--show", default="all", metavar="|".join(SHOWS), help="whose lines appear on the console (default: all)")
    add("--nodes", metavar="N|MIN:MAX", help="machines of this job (default: 1, in SLURM the job's)")
    add("--rdzv", metavar="HOST[:PORT]", help="where the machines meet: one of them, the same for all")
    add("--node-rank", metavar="N", help="this machine's place in the order of ranks (default: by host name)")
    add("--run-id", metavar="ID", help="what this job's launchers have in common (default: from the command)")
    add("--join-timeout", default="600", metavar="SECONDS", help="wait this long for machines (default: 600)")
    add("--notice-before", metavar="SECONDS", help="notice before a SLURM job's end (default: 120 or a tenth)")
    add("--sbatch", nargs="?", const="", metavar="=FILE", help="submit this as a SLURM batch job, or write its script")
    add("--slurm", default="", metavar="OPTIONS", help="options of sbatch for --sbatch, in one word")
    add("--dry-run", action="store_true", help="print the plan and start nothing")
    add("--version", action="store_true", help="print the version")
    add("-h", "--help", action="store_true", help="print this")
    return parser
