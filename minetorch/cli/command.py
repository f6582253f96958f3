"""The command line of `minetorch`: parses it, runs the one command, turns errors into exit codes."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from minetorch.cli import compare, cp, export, ls, prove, prune, report, show, verify, watch
from minetorch.errors import ConfigurationError, MinetorchError, in_one_line
from minetorch.version import __version__
from minetorch.views.output import warn

if TYPE_CHECKING:
    from collections.abc import Sequence

_EPILOG = (
    "RUN and URL are paths or any URL that fsspec knows, such as s3://bucket/runs/plan-a. "
    "Exit code: 0 if all went well, 1 if something failed or is damaged, 2 if the command is wrong."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, by default the process's own, and return its exit code."""
    if argv is None and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the names of files need not be text
    try:
        words, behind = prove.split(sys.argv[1:] if argv is None else argv)
        given = _parser().parse_args(words)
        if behind:
            given.arguments += behind
        code = int(given.run(given))
        sys.stdout.flush()
    except ConfigurationError as err:
        return _fail(err, 2)
    except MinetorchError as err:
        return _fail(err, 1)
    except BrokenPipeError:
        # Whoever read has seen enough. Python would complain once more when it ends and flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return code


def _fail(err: MinetorchError, code: int) -> int:
    warn(f"error: {err}")
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise one line. What is not known is not shown whole: it may hold a secret."""
        message = in_one_line(message)
        prefix = "unrecognized arguments: "
        if not message.startswith(prefix):
            raise ConfigurationError(f"{message}: type {self.prog} --help")
        unknown = message.removeprefix(prefix).split(" ")[0].split("=")[0]
        if not unknown.startswith("-"):
            raise ConfigurationError(f"there is one argument too many: type {self.prog} --help")
        close = difflib.get_close_matches(unknown, _options(self) - {unknown}, n=1, cutoff=0.75)
        hint = f"did you mean {close[0]}?" if close else f"type {self.prog} --help for the options"
        raise ConfigurationError(f"unknown option {unknown}: {hint}")


def _options(parser: argparse.ArgumentParser) -> set[str]:
    """The names of a parser's options and of its commands' options."""
    names = {name for action in parser._actions for name in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            names.update(*map(_options, action.choices.values()))
    return names


def _parser() -> _Parser:
    parser = _Parser(
        prog="minetorch",
        description="Look at runs and compare them; check, move and drop their checkpoints; prove that they resume.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"minetorch {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (ls, show, compare, report, watch, verify, export, prune, cp, prove):
        command.add_to(commands)
    return parser
