"""``minetorch-launch --sbatch``: writes the batch script of a SLURM job, and submits it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from minetorch_launch.arguments import Request
from minetorch_launch.errors import StartError, UsageError
from minetorch_launch.options import LaunchOptions
from minetorch_launch.slurm.srun import LAUNCHER

_OURS = {"--sbatch", "--sbatch-options", "--dry-run"}

# Other names of the options that the batch script sets: an option of the user's takes the place of ours.
_SHORT = {"-J": "--job-name", "-N": "--nodes", "-c": "--cpus-per-task", "-o": "--output", "-D": "--chdir"}
_SYNONYMS = _SHORT | dict.fromkeys(("-G", "--gpus", "--gres", "--gpus-per-task"), "--gpus-per-node")
_SYNONYMS |= {"-a": "--array", "--no-requeue": "--requeue"}


def run(request: Request, *, say: Callable[[str], None]) -> int:
    """Submit the batch script of a command line that names a target, or write it, or print it with ``--dry-run``.

    Raises:
        UsageError: an option cannot work, the file cannot be written, or there is no sbatch here.
        StartError: sbatch refused the job.
    """
    wants = request.wants
    try:
        words = shlex.split(wants.sbatch_options)
    except ValueError as error:
        example = "type e.g. --sbatch-options='--partition=gpu --time=4:00:00'"
        raise UsageError(f"--sbatch-options {wants.sbatch_options!r}: {error}; {example}") from None
    own = [word for word in request.own if word.split("=")[0] not in _OURS]
    first = next(word for word in request.rest if word not in ("-m", "--"))
    name = first if request.rest[0] == "-m" else Path(first).stem
    launcher = [*LAUNCHER, *own, *request.rest]
    text = batch_script(request.options, launcher, name=name, sbatch_options=words, folder=str(Path.cwd()))
    if wants.dry_run:
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(text))
    elif wants.sbatch:
        _write(Path(wants.sbatch), text)
    else:
        say(f"minetorch-launch: submitted batch job {_submit(text)}")
    return 0


def batch_script(
    options: LaunchOptions,
    launcher: Sequence[str],
    *,
    name: str,
    sbatch_options: Sequence[str],
    folder: str,
) -> str:
    """The text of a batch script that runs ``launcher`` in ``folder``. Pure.

    The options of the launch become what the job asks SLURM for; each of ``sbatch_options`` replaces ours of its name.

    Raises:
        UsageError: something has a line break, which a batch script's options cannot hold.
    """
    given = {_long_name(word) for word in sbatch_options if word.startswith("-")}
    nproc = options.nproc if isinstance(options.nproc, int) else None
    ours = {
        "--job-name": name,
        "--chdir": folder,
        "--nodes": "-".join(map(str, sorted(set(options.nodes or (1,))))),
        "--ntasks-per-node": "1",
        "--cpus-per-task": str(nproc * (options.threads or 1)) if nproc else None,
        "--gpus-per-node": str(nproc) if options.device == "cuda" and nproc else None,
        "--requeue": "",
        "--open-mode": "append",  # a requeued job continues in the same file
        "--output": "%x-%A_%a.out" if "--array" in given else "%x-%j.out",
    }
    lines = [
        _quoted(f"{option}={value}" if value else option)
        for option, value in ours.items()
        if value is not None and option not in given
    ]
    lines += _user_lines(sbatch_options)
    text = "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in lines), f"exec {shlex.join(launcher)}", ""])
    if len(text.splitlines()) != len(lines) + 2:
        raise UsageError("an option or argument has a line break, which a batch script cannot hold: take it out")
    return text


def _write(file: Path, text: str) -> None:
    try:
        file.write_bytes(os.fsencode(text))
        mode = file.stat().st_mode
        file.chmod(mode | (mode & 0o444) >> 2)  # executable for those who may read it
    except OSError as error:
        raise UsageError(f"--sbatch={file}: {error.strerror}; give a file that you may write") from None


def _submit(text: str) -> str:
    if shutil.which("sbatch") is None:
        raise UsageError(
            "--sbatch needs SLURM's sbatch, which is not here: type --sbatch=FILE, and submit FILE where there is one"
        )
    # Encoded as file names are, so that a path that is not UTF-8 survives.
    done = subprocess.run(["sbatch", "--parsable"], input=os.fsencode(text), stdout=subprocess.PIPE)
    if done.returncode != 0:
        raise StartError("sbatch refused the job: read its message above; --dry-run shows what it was given")
    return done.stdout.decode().strip().split(";")[0]


def _long_name(word: str) -> str:
    option = word.split("=")[0]
    short = option[:2] if re.match(r"-\w", option) else option
    return _SYNONYMS.get(short, option)


def _user_lines(words: Sequence[str]) -> list[str]:
    """One line per option, with its value where that is a word of its own."""
    lines: list[str] = []
    for word in words:
        if word.startswith("-") or not lines:
            lines.append(_quoted(word))
        else:
            lines[-1] += f" {_quoted(word)}"
    return lines


def _quoted(word: str) -> str:
    """Quote as sbatch reads options in a script: double quotes, and a backslash before special characters."""
    if re.fullmatch(r"[\w@%+=:,./\[\]-]+", word):
        return word
    return '"' + re.sub(r'(["\\])', r"\\\1", word) + '"'
