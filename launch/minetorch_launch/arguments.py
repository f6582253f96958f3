"""The command line's words -> what they ask for; torchrun's spellings are understood, too.

The words are read here, and not by argparse, which interprets prefixes of options in the script's own arguments as
well.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from minetorch_launch import torchrun
from minetorch_launch.errors import UsageError, one_line, short_repr
from minetorch_launch.numa import MODES as NUMA_MODES
from minetorch_launch.options import (
    DEVICES,
    PREFIXES,
    RESTART_POLICIES,
    SHOWS,
    START_METHODS,
    LaunchOptions,
)
from minetorch_launch.target import Command, Module, Script


class Option(NamedTuple):
    """One option of ours; what it sets has the same name as a field of `LaunchOptions`, or of `Wants`."""

    name: str
    metavar: str
    """What its value is; empty for a flag. With ``=`` in front the value may be left out."""

    convert: Callable[[str], object]
    """From the word given to the value."""

    help: str


# A word that cannot be converted stays as it is: `LaunchOptions` refuses it, and says what to type.


def _flag(_: str) -> bool:
    return True


def _nproc(text: str) -> int | str | None:
    return None if text == "auto" else _whole_number(text)


def _whole_number(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _whole_numbers(text: str) -> tuple[int | str, ...] | None:
    return tuple(map(_whole_number, text.split(","))) if text else None


def _seconds(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _hang_timeout(text: str) -> float | str | None:
    return None if text == "auto" else _seconds(text)


def _folder(text: str) -> Path | str:
    return Path(text) if text.strip() else text


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _nodes(text: str) -> tuple[int, int] | str:
    minimum, colon, maximum = text.partition(":")
    try:
        return int(minimum), int(maximum if colon else minimum)
    except ValueError:
        return text


def _signals(text: str) -> tuple[str, ...]:
    return tuple(_signal_name(word.strip()) for word in text.split(",") if word.strip())


def _signal_name(word: str) -> str:
    """``SIGUSR2`` for ``USR2``, ``usr2`` or ``12``."""
    if word.isdecimal() and len(word) < 4 and int(word) in {int(member) for member in signal.Signals}:
        return signal.Signals(int(word)).name
    return "SIG" + word.upper().removeprefix("SIG")


OPTIONS: Mapping[str, tuple[Option, ...]] = {
    "Common options": (
        Option(
            "--nproc", "N|auto|cores", _nproc, "workers; auto (default): one per GPU, else 1; cores: else one per core"
        ),
        Option("--device", "|".join(DEVICES), str, "device of the workers (default: auto)"),
        Option("--max-restarts", "N", _whole_number, "restarts of all workers after a failure (default: 0)"),
        Option("--restart-policy", "|".join(RESTART_POLICIES), str, "auto: restart if it can help (default)"),
        Option("--log-dir", "DIR", _folder, "write DIR/rank_N.log for each worker, DIR/failure.json on failure"),
        Option("--show", "|".join(SHOWS), str, "lines that appear on the console (default: all)"),
        Option("--prefix", "|".join(PREFIXES), str, "the rank before each line (auto: not for one worker in a pipe)"),
        Option(
            "--threads", "N", _whole_number, "OMP_NUM_THREADS of a worker (default: yours, else a share of the cores)"
        ),
        Option("--hang-timeout", "SECONDS", _hang_timeout, "no step for so long is a hang (default: 300 or more)"),
        Option("--grace", "SECONDS", _seconds, "time from the stop signal to SIGKILL (default: 30)"),
        Option("--preempt-signals", "SIG,...", _signals, "warn of a preemption (default: USR2, in SLURM also TERM)"),
        Option("--preload", "MODULE", _names, "import once for all workers; repeatable"),
        Option("--start-method", "|".join(START_METHODS), str, "how workers are started (default: forkserver)"),
        Option("--dry-run", "", _flag, "print the plan and start nothing"),
        Option("--version", "", _flag, "print the version"),
        Option("--help", "", _flag, "print this"),
    ),
    "Many nodes (the same command on each)": (
        Option("--nodes", "N|MIN:MAX", _nodes, "machines of this job (default: 1, in SLURM the job's)"),
        Option("--rdzv-endpoint", "HOST[:PORT]", str, "where the nodes meet: one of them, the same for all"),
        Option("--rdzv-id", "ID", str, "name that this job's launchers share (default: from the command)"),
        Option("--node-rank", "N", _whole_number, "this machine's place in the order of ranks (default: by name)"),
        Option("--join-timeout", "SECONDS", _seconds, "time to wait for the nodes (default: 600, in SLURM 60)"),
        Option("--last-call-timeout", "SECONDS", _seconds, "time to wait for more nodes than MIN (default: 10)"),
        Option("--local-addr", "ADDRESS", str, "this machine's address for the others (default: as routed)"),
    ),
    "SLURM": (
        Option("--sbatch", "=FILE", str, "submit this as a batch job, or write its script to FILE"),
        Option("--sbatch-options", "OPTIONS", str, "sbatch's options for --sbatch, in one word"),
        Option("--preempt-before", "SECONDS", _seconds, "warning before the job's end (default: 120 or a tenth)"),
    ),
    "Also torchrun's (docs/torchrun.md has all; PET_NODE_RANK=1 is --node-rank 1, and so on)": (
        Option("--no-python", "", _flag, "run a program that is not Python"),
        Option("--redirects", "STREAMS", str, "log file only: 3 (stdout and stderr), or 0:1,1:2 by local rank"),
        Option("--tee", "STREAMS", str, "log file and console"),
        Option("--local-ranks-filter", "N,...", _whole_numbers, "local ranks whose lines appear on the console"),
        Option("--numa-binding", "MODE", str, f"bind each worker to the CPUs near its GPU: {', '.join(NUMA_MODES)}"),
        Option("--virtual-local-rank", "", _flag, "each worker sees its own GPU only, as number 0"),
        Option("--role", "NAME", str, "ROLE_NAME of the workers (default: default)"),
    ),
}

_USAGE = """\
usage: minetorch-launch [OPTIONS] SCRIPT [ARGS]...
       minetorch-launch [OPTIONS] -m MODULE [ARGS]...

Start one worker process per device, keep them together, and explain what went wrong.
torchrun's options are understood. `minetorch-doctor` checks whether this machine is ready.
"""
_EPILOG = """\
Exit code: that of the worker that failed first (128 + n for signal n), 75 if the workers stopped early with all work
saved, 124 if they hung, 2 for a usage error, 130 after Ctrl-C.
"""

_SHORT = {"-m": "--module", "-t": "--tee", "-r": "--redirects", "-h": "--help"}
_OWN = {option.name: option for options in OPTIONS.values() for option in options}
_FLAGS = {*torchrun.FLAGS, *(name for name, option in _OWN.items() if not option.metavar)}
_NAMES = {*_OWN, *torchrun.FLAGS, *torchrun.VALUED}
_SAME = torchrun.SAME | {own: theirs for theirs, own in torchrun.SAME.items()}


@dataclass(frozen=True)
class Wants:
    """What a command line asks for beside a launch."""

    help: bool = False
    version: bool = False
    dry_run: bool = False
    sbatch: str | None = None
    """None: no batch job; "": submit one; else the file to write."""

    sbatch_options: str = ""


@dataclass(frozen=True)
class Request:
    """A command line, read."""

    own: tuple[str, ...]
    """The launcher's options, ours and torchrun's, in one word each; read again, they mean the same."""

    rest: tuple[str, ...]
    """What follows them, after ``-m`` for a module: the target and its arguments, with two dashes where they stood."""

    target: Script | Module | Command | None
    options: LaunchOptions
    wants: Wants
    notes: tuple[str, ...] = ()
    """Lines for the user about options without effect."""


def read(argv: Sequence[str], environ: Mapping[str, str]) -> Request:
    """What a command line asks for.

    Args:
        argv: the words after the command's name.
        environ: for the ``PET_*`` variables; an option on the command line wins over its variable.

    Raises:
        UsageError: with one line that says what to type.
    """
    given, own, words = _split(argv)
    variables = torchrun.read_environ(given, environ)
    try:
        values, notes = torchrun.translate(given | variables)
        wants = _wants(values)
        options = LaunchOptions(**_fields(LaunchOptions, values))
    except UsageError as error:
        blamed = [name for name in variables if name in str(error) or torchrun.SAME.get(name, " ") in str(error)]
        if not blamed:
            raise
        names = ", ".join("PET_" + name[2:].upper().replace("-", "_") for name in blamed)
        raise UsageError(f"{error} ({names} is set)") from None
    target = _target(given | variables, words)
    rest = ("-m", *words) if isinstance(target, Module) else words
    return Request(tuple(own), rest, target, options, wants, notes)


def help_text() -> str:
    """What ``--help`` prints."""
    lines = [_USAGE]
    for title, options in OPTIONS.items():
        lines.append(f"{title}:")
        for name, metavar, _, text in options:
            left = f"  {name}[{metavar}]" if metavar.startswith("=") else f"  {name} {metavar}"
            lines.append(f"{left:<38} {text}".rstrip())
        lines.append("")
    return "\n".join([*lines, _EPILOG])


def _split(argv: Sequence[str]) -> tuple[dict[str, str], list[str], tuple[str, ...]]:
    """The options by name, the options as words, and what follows them."""
    given: dict[str, str] = {}
    own: list[str] = []
    words = list(argv)
    while words and words[0].startswith("-") and words[0] not in ("-", "--"):
        name, value = _name_and_value(words.pop(0))
        if name in _FLAGS:
            if name == "--module" and value:  # -mMODULE, as with python
                words.insert(0, value)
                value = None
            if value is not None:
                raise UsageError(f"{name} takes no value: leave {short_repr(value)} out")
        elif value is None and name != "--sbatch":
            if not words:
                raise UsageError(f"{name} needs a value: type minetorch-launch --help for the options")
            value = words.pop(0)
        given.pop(_SAME.get(name, ""), None)
        repeated = f"{given[name]}," if name == "--preload" and name in given else ""
        given[name] = repeated + (value or "")
        if name != "--module":
            own.append(name if value is None else f"{name}={value}")
    return given, own, tuple(words)


def _name_and_value(word: str) -> tuple[str, str | None]:
    """The long name of an option, and its value where both are one word."""
    if not word.startswith("--"):
        if word[:2] not in _SHORT:
            raise UsageError(f"unknown option {one_line(word)}: {_hint(word)}")
        return _SHORT[word[:2]], word[2:].removeprefix("=") or None
    name, equals, value = word.partition("=")
    name = name.replace("_", "-")
    if name not in _NAMES:
        # Abbreviations as argparse understands them, of torchrun's options: scripts have them.
        meant = [full for full in (*torchrun.FLAGS, *torchrun.VALUED) if full.startswith(name) and len(name) > 2]
        if len(meant) > 1:
            raise UsageError(f"{one_line(name)} can mean {', '.join(meant)}: type one of them")
        if not meant:
            raise UsageError(f"unknown option {one_line(name)}: {_hint(name)}")
        name = meant[0]
    return name, value if equals else None


def _hint(name: str) -> str:
    import difflib  # for this message only

    close = difflib.get_close_matches(name, sorted(_NAMES), n=1, cutoff=0.75)
    hint = f"did you mean {close[0]}?" if close else "type minetorch-launch --help for the options"
    return f"{hint} (a script's own options go after the script)"


def _target(given: Mapping[str, str], words: tuple[str, ...]) -> Script | Module | Command | None:
    # Two dashes before or after the target end the options, as argparse has it: torchrun -m MODULE -- ARGS is common.
    if words[:1] == ("--",):
        words = words[1:]
    elif words[1:2] == ("--",):
        words = (words[0], *words[2:])
    module, no_python = "--module" in given, "--no-python" in given
    if module and (not words or not words[0]):
        raise UsageError("-m needs a module: type -m MODULE [ARGS]...")
    if not words:
        return None
    if "--run-path" in given:
        return Script(words[0], words[1:])
    if module and no_python:
        raise UsageError("-m is for a Python module, and --no-python for a program that is not Python: drop one")
    kind = Command if no_python else Module if module else Script
    return kind(words[0], words[1:])


def _wants(given: Mapping[str, str]) -> Wants:
    if "--sbatch-options" in given and "--sbatch" not in given:
        raise UsageError("--sbatch-options is for a batch job: type --sbatch as well, or leave it out")
    return Wants(**_fields(Wants, given))


def _fields(kind: type[Wants] | type[LaunchOptions], given: Mapping[str, str]) -> dict[str, Any]:
    names = {"--" + field.name.replace("_", "-"): field.name for field in dataclasses.fields(kind)}
    return {names[name]: _OWN[name].convert(given[name]) for name in given if name in names}
