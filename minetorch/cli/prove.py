"""`minetorch prove`: runs a script with and without kills, and says whether it ends the same."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minetorch.cli.options import is_count, local_path
from minetorch.errors import ConfigurationError
from minetorch.views.output import warn, write, write_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

NAME = "prove"


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        NAME,
        help="show that a killed training ends as one that was not killed",
        description="Runs SCRIPT once as it is and once with kills at random steps, compares every sample, loss and "
        "tensor of each step, and says where they part, and why. The script writes to a folder of its own; your runs "
        "are not touched.",
        epilog="Arguments of the script that begin with a dash come after `--`: "
        "minetorch prove train.py --nproc 2 -- --epochs 4",
        allow_abbrev=False,
    )
    parser.add_argument("script", metavar="SCRIPT", help="the script, unchanged")
    parser.add_argument("arguments", metavar="ARG", nargs="*", help="its arguments")
    parser.add_argument("--nproc", metavar="N", default="1", help="ranks (default: 1, without a launcher)")
    parser.add_argument("--kills", metavar="K", default="2", help="how often it is killed (default: 2)")
    parser.add_argument("--then-nproc", metavar="M", help="go on with M ranks after the first kill")
    parser.add_argument("--seed", metavar="S", default="0", help="what the kills are drawn by (default: 0)")
    parser.add_argument("--steps", metavar="N", help="end the script after N steps")
    parser.add_argument(
        "--persist-steps", metavar="N", default="10", help="save so often, if it does not say (default: 10)"
    )
    parser.add_argument("--device", metavar="auto|cpu|cuda", default="auto", help="what to compute on (default: auto)")
    parser.add_argument("--timeout", metavar="SECONDS", default="3600", help="for each of the runs (default: 3600)")
    parser.add_argument("--keep", metavar="DIR", help="keep the runs, in a new folder DIR")
    parser.add_argument("--json", action="store_true", help="print JSON, with the keys that docs/prove.md lists")
    parser.set_defaults(run=run)


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words for this command, and those behind `--`, which are the script's."""
    words = list(words)
    if words[:1] != [NAME] or "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def run(given: argparse.Namespace) -> int:
    """Prove, and print the verdict; 1 if the runs differ."""
    from minetorch.prove.proof import Proof, Wanted  # these import torch
    from minetorch.prove.running import Script, signals_as_interrupts

    if not os.path.isfile(given.script):  # noqa: PTH113 (Path's own raises for a name that is too long)
        raise ConfigurationError(f"there is no script {given.script}")
    if given.device not in ("auto", "cpu", "cuda"):
        raise ConfigurationError(f"--device {given.device}: give auto, cpu or cuda")
    wanted = Wanted(
        script=Script(given.script, given.arguments, given.device, _seconds(given.timeout)),
        nproc=_count("nproc", given.nproc),
        kills=_count("kills", given.kills),
        seed=_count("seed", given.seed, least=0),
        persist_steps=_count("persist-steps", given.persist_steps),
        steps=None if given.steps is None else _count("steps", given.steps, least=2),
        then_nproc=None if given.then_nproc is None else _count("then-nproc", given.then_nproc),
    )
    folder = _folder(given.keep)
    try:
        with signals_as_interrupts():
            verdict = Proof(wanted, folder, tell=_silent if given.json else write).run()
    finally:
        if given.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if given.json:
        write_json(verdict.facts())
    else:
        write(verdict.text())
    if given.keep is not None:
        warn(f"the runs are in {folder}")
    return 0 if verdict.is_exact else 1


def _silent(line: str) -> None:
    """Nothing but JSON is printed."""


def _folder(keep: str | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="minetorch-prove-"))
    folder = local_path(keep).absolute()
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ConfigurationError(f"--keep {keep}: it exists already; give the name of a new folder") from None
    except OSError as err:
        raise ConfigurationError(f"--keep {keep}: cannot make it: {err.strerror}") from None
    return folder


def _count(name: str, text: str, least: int = 1) -> int:
    if not is_count(text, least):
        raise ConfigurationError(f"--{name} {text}: give a whole number, {least} or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigurationError(f"--timeout {text}: give seconds, more than 0")
    return seconds
