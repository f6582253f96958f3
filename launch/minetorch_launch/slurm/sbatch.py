"""``minetorch-launch --sbatch``: writes the batch script of a SLURM job, and submits it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from minetorch_launch.errors import StartError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from minetorch_launch.arguments import Request
    from minetorch_launch.plan import LaunchOptions
    from minetorch_launch.target import Module, Script

__all__ = ["batch_script", "launcher_command", "run", "submit", "write"]

# Short forms, so that an option of the user's takes the place of ours however it is spelled.
_LONG = {
    "-J": "--job-name",
    "-N": "--nodes",
    "-c": "--cpus-per-task",
    "-o": "--output",
    "-D": "--chdir",
    "-a": "--array",
    "--gpus": "--gpus-per-node",
    "-G": "--gpus-per-node",
    "--gres": "--gpus-per-node",
    "--gpus-per-task": "--gpus-per-node",
    "--no-requeue": "--requeue",
}


def launcher_command(argv: Sequence[str]) -> list[str]:
    """The command of a launcher with this one's Python, which needs nothing from PATH."""
    return [sys.executable, "-m", "minetorch_launch", *argv]


def run(request: Request, *, say: Callable[[str], None]) -> int:
    """What ``--sbatch`` does: write the batch script, or submit it, or print it with ``--dry-run``.

    Args:
        request: the command line, which names a target.
        say: shows a line to the user.

    Raises:
        UsageError: an option cannot work, the file cannot be written, or there is no sbatch here.
        StartError: sbatch refused.
    """
    assert request.target is not None
    wants = request.wants
    try:
        words = shlex.split(wants.slurm)
    except ValueError as error:
        raise UsageError(
            f"--slurm {wants.slurm!r}: {error}; type e.g. --slurm='--partition=gpu --time=4:00:00'"
        ) from None
    # The two dashes keep a script whose name begins with one from being read as an option.
    dashes = ("--",) if request.rest[0].startswith("-") and request.rest[0] != "-m" else ()
    launcher = launcher_command([*_without_own(request.own), *dashes, *request.rest])
    text = batch_script(request.options, request.target, launcher, slurm=words, folder=str(Path.cwd()))
    if wants.dry_run:
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(text))
    elif wants.sbatch:
        write(Path(wants.sbatch), text)
    else:
        submit(text, say)
    return 0


def batch_script(
    options: LaunchOptions, target: Script | Module, launcher: Sequence[str], *, slurm: Sequence[str], folder: str
) -> str:
    """The text of a batch script that runs ``launcher``. Pure.

    Args:
        options: of the launch: nodes, workers, threads and device become what the job asks SLURM for.
        target: names the job.
        launcher: the command, options included.
        slurm: the user's own options of sbatch; each takes the place of ours of the same name.
        folder: where the job runs.

    Raises:
        UsageError: something has a line break, which a batch script's options cannot hold.
    """
    given = {_long_name(word) for word in slurm if word.startswith("-")}
    name = Path(target.path).stem if hasattr(target, "path") else target.name
    output = "%x-%A_%a.out" if "--array" in given else "%x-%j.out"
    ours = {
        "--job-name": name,
        "--chdir": folder,
        "--nodes": "-".join(map(str, sorted(set(options.nodes or (1,))))),
        "--ntasks-per-node": "1",
        "--cpus-per-task": str(options.nproc * (options.threads or 1)) if options.nproc else None,
        "--gpus-per-node": str(options.nproc) if options.device == "cuda" and options.nproc else None,
        "--requeue": "",
        "--open-mode": "append",  # a requeued job goes on in the same file
        "--output": output,
    }
    words = [
        f"{option}={value}" if value else option
        for option, value in ours.items()
        if value is not None and option not in given
    ]
    lines = [*map(_quoted, words), *_user_lines(slurm)]
    text = "\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in lines), f"exec {shlex.join(launcher)}", ""])
    if len(text.splitlines()) != len(lines) + 2:
        raise UsageError("an option or argument has a line break in it, which a batch script cannot hold: take it out")
    return text


def write(file: Path, text: str) -> None:
    """Write the batch script to ``file``.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        file.write_bytes(os.fsencode(text))
        readable = file.stat().st_mode & 0o444  # as the umask has it: a command's arguments may be nobody else's
        file.chmod(file.stat().st_mode | readable >> 2)
    except OSError as error:
        raise UsageError(f"--sbatch={file}: {error.strerror}; give a file that you may write") from None


def submit(text: str, say: Callable[[str], None]) -> str:
    """Submit the batch script.

    Returns:
        The job's id.

    Raises:
        UsageError: there is no sbatch here.
        StartError: sbatch refused.
    """
    if shutil.which("sbatch") is None:
        raise UsageError(
            "--sbatch needs SLURM's sbatch, which is not here: type --sbatch=FILE, and submit FILE where there is one"
        )
    # Encoded as file names are, so that a path that is no UTF-8 comes through.
    done = subprocess.run(["sbatch", "--parsable"], input=os.fsencode(text), stdout=subprocess.PIPE)
    if done.returncode != 0:
        raise StartError("sbatch refused the job: see its own words above, and --dry-run for what it was given")
    number = done.stdout.decode().strip().split(";")[0]
    say(f"minetorch-launch: submitted batch job {number}")
    return number


def _without_own(words: Sequence[str]) -> list[str]:
    """The launcher's options less those that are for here and not for the job; each is one word, its value included."""
    return [word for word in words if word.split("=")[0] not in ("--sbatch", "--slurm", "--dry-run")]


def _long_name(word: str) -> str:
    option = word.split("=")[0]
    short = option[:2] if re.match(r"-\w", option) else option
    return _LONG.get(short, option)


def _user_lines(words: Sequence[str]) -> list[str]:
    """One line for each option, with its value where that is a word of its own."""
    lines: list[str] = []
    for word in words:
        if word.startswith("-") or not lines:
            lines.append(_quoted(word))
        else:
            lines[-1] += f" {_quoted(word)}"
    return lines


def _quoted(word: str) -> str:
    """As sbatch reads its options from a script: double quotes, and a backslash before what is special in them."""
    if re.fullmatch(r"[\w@%+=:,./\[\]-]+", word):
        return word
    return '"' + re.sub(r'(["\\])', r"\\\1", word) + '"'
