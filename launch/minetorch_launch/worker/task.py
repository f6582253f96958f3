"""What a worker runs, as the launcher tells it: made from the target, in the launcher."""

from __future__ import annotations

import io
import pickle
import stat
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minetorch_launch.errors import UsageError
from minetorch_launch.target import Command, Function, Module, Target

Kind = Literal["script", "application", "module", "function", "command"]


@dataclass(frozen=True)
class Task:
    """What a worker runs."""

    kind: Kind
    name: str
    """Path of a script or application, name of a module, program of a command; empty for a function."""

    args: tuple[str, ...] = ()
    """``sys.argv[1:]``."""

    sys_path: tuple[str, ...] | None = None
    """``sys.path`` as the target shall find it; None: as it is."""

    source: bytes | None = None
    """Text of a script that only the launcher can read: from a pipe, or from one of its own descriptors."""

    function: bytes | None = None
    """The function with its arguments, pickled."""

    main: tuple[Literal["path", "name"], str] | None = None
    """Where the function's ``__main__`` comes from, if something in ``function`` does."""


def make_task(target: Target, *, own_process: bool) -> Task:
    """The task of every worker, made in the launcher.

    Args:
        target: a target that `minetorch_launch.target.check_target` has passed.
        own_process: this process exists for the launch alone, so that ``sys.path[0]`` is the launcher's.

    Raises:
        UsageError: a function cannot be sent to another process, or a script cannot be read.
    """
    path = _sys_path(target.import_root, own_process=own_process)
    if isinstance(target, Function):
        pickled, uses_main = _pickled(target)
        return Task(
            "function", "", sys_path=tuple(sys.path), function=pickled, main=_caller_main() if uses_main else None
        )
    if isinstance(target, Command):
        return Task("command", target.program, target.args)
    if isinstance(target, Module):
        return Task("module", target.name, target.args, path)
    if target.is_application:
        return Task("application", target.path, target.args, path)
    return Task("script", target.path, target.args, path, source=_source_of_pipe(target.path))


def _caller_main() -> tuple[Literal["path", "name"], str]:
    main: Any = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return "name", spec.name
    file = getattr(main, "__file__", None)
    if file is None or not Path(file).exists():
        raise UsageError(
            "the function or an argument is defined in an interactive session, where no other process finds it: "
            "put it into a file and import it from there"
        )
    return "path", str(Path(file).absolute())


class _Pickler(pickle.Pickler):
    """Notes whether something of the caller's ``__main__`` is pickled by its name."""

    uses_main = False

    def reducer_override(self, thing: object) -> Any:
        is_named = isinstance(thing, type | types.FunctionType)
        self.uses_main = self.uses_main or (is_named and thing.__module__ == "__main__")
        return NotImplemented


def _pickled(target: Function) -> tuple[bytes, bool]:
    """The function with its arguments, and whether the caller's ``__main__`` is needed to load them."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump((target.call, target.args, dict(target.kwargs)))
    except Exception as error:  # whatever a class of the user's raises
        raise UsageError(
            f"{target} cannot be sent to the workers ({type(error).__name__}: {error}): "
            "define the function at the top level of a module, and give it arguments that pickle takes"
        ) from error
    return file.getvalue(), pickler.uses_main


def _sys_path(root: str | None, *, own_process: bool) -> tuple[str, ...] | None:
    if root is None:
        return None
    if getattr(sys.flags, "safe_path", False):  # python -P: the script's folder is not on the path
        return tuple(sys.path)
    return (root, *(sys.path[1:] if own_process else sys.path))


def _source_of_pipe(path: str) -> bytes | None:
    """What can be read only once, or only in this process: ``/dev/stdin``, ``<(…)`` of a shell, a named pipe."""
    try:
        is_own = str(Path(path).absolute()).startswith(("/dev/", "/proc/"))
        if stat.S_ISREG(Path(path).stat().st_mode) and not is_own:
            return None
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"the script {path!r} cannot be read ({error.strerror}): give a Python file") from None
