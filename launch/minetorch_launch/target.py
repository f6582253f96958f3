"""What a launch runs: a script, a module, a function or a command."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from minetorch_launch.errors import UsageError, short_repr


@dataclass(frozen=True)
class Script:
    """A Python file, a zip application or a folder with ``__main__.py``, run as ``python PATH ARGS…`` would."""

    path: str
    args: tuple[str, ...] = ()

    @property
    def is_application(self) -> bool:
        """Whether it is a zip archive or a folder: something that modules can be imported from."""
        return pkgutil.get_importer(self.path) is not None

    @property
    def import_root(self) -> str:
        """What ``sys.path[0]`` is while it runs, as Python has it: the application, or a file's real folder."""
        if self.is_application:
            return os.path.join(os.getcwd(), self.path)  # noqa: PTH109, PTH118 - "./app/" stays as it is
        return str(Path(self.path).resolve().parent)

    def __str__(self) -> str:
        return shlex.join(("python", self.path, *self.args))


@dataclass(frozen=True)
class Module:
    """A module, run as ``python -m NAME ARGS…`` would."""

    name: str
    args: tuple[str, ...] = ()

    @property
    def import_root(self) -> str:
        """What ``sys.path[0]`` is while it runs: the working folder."""
        return str(Path.cwd())

    def __str__(self) -> str:
        return shlex.join(("python", "-m", self.name, *self.args))


@dataclass(frozen=True)
class Function:
    """A function that can be pickled, called once in every worker; ``launch`` returns what it returned."""

    call: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def import_root(self) -> None:
        """Workers keep the ``sys.path`` of the process that launches a function."""
        return

    def __str__(self) -> str:
        return f"{self.call.__module__}.{self.call.__qualname__}()"


@dataclass(frozen=True)
class Command:
    """A program that is not Python: executed in every worker's place, with the worker's environment."""

    program: str
    args: tuple[str, ...] = ()

    @property
    def import_root(self) -> None:
        """It imports nothing."""
        return

    def __str__(self) -> str:
        return shlex.join((self.program, *self.args))


Target: TypeAlias = Script | Module | Function | Command

_COMPILER = "torch.compiler"
_TRAINER = "minetorch.trainer"


def check_target(target: Target) -> None:
    """Look whether ``target`` is there at all, before anything is started for it.

    Raises:
        UsageError: with what to type instead.
    """
    if isinstance(target, Script):
        _check_script(target.path)
    elif isinstance(target, Command):
        _check_program(target.program)
    elif isinstance(target, Module) and not find_module(target.name, target.import_root):
        raise UsageError(
            f"no module named {short_repr(target.name)} in {target.import_root} or the installed packages: "
            "give -m a name that `python -m` would run"
        )


def likely_imports(target: Target) -> tuple[str, ...]:
    """What ``target`` is likely to have imported before its first step, beside torch itself.

    All but a script that mentions nothing of the kind make an optimizer, at which torch imports its compiler: almost
    as much again as torch. One that imports minetorch makes a Trainer, most likely.
    """
    if isinstance(target, Command):
        return ()
    # A pipe can be read only once, and the workers need what is in it.
    if not isinstance(target, Script) or not Path(target.path).is_file():
        return (_COMPILER,)
    with suppress(OSError):
        text = Path(target.path).read_bytes()
        # A minetorch beside the script is not the one that a fork server would find.
        own = not Path(target.import_root, "minetorch").exists()
        trainer = own and re.search(rb"^\s*(from|import)\s+minetorch\b", text, re.MULTILINE)
        compiler = re.search(rb"optim|minetorch|accelerate|lightning|Trainer", text)
        return (*((_COMPILER,) if compiler or target.is_application else ()), *((_TRAINER,) if trainer else ()))
    return (_COMPILER,)


def find_module(name: str, import_root: str | None) -> bool:
    """Whether ``import name`` would find something, with ``import_root`` first on the path.

    A dotted name's parent packages are not imported, so only its first part is looked for, and the rest
    as files beside it: packages may print, take seconds, or start threads when imported.
    """
    first, *rest = name.split(".")
    if not all(rest) or "/" in name:
        return False
    with _first_on_path(import_root):
        try:
            spec = importlib.util.find_spec(first) if first else None
        except (ImportError, ValueError):
            return False
    if spec is None:
        return False
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    if not rest or not all(place.is_dir() for place in places):
        return not rest or bool(places)
    return any(_is_module(place.joinpath(*rest)) for place in places)


def _is_module(place: Path) -> bool:
    with suppress(OSError, ValueError):  # a name that no file can have
        return place.is_dir() or any(other.name.startswith(f"{place.name}.") for other in place.parent.iterdir())
    return False


@contextmanager
def _first_on_path(folder: str | None) -> Iterator[None]:
    before = list(sys.path)
    if folder is not None:
        sys.path[:1] = [folder]
    try:
        yield
    finally:
        sys.path[:] = before


def _check_script(path: str) -> None:
    script = Path(path)
    try:
        there = bool(path) and (script.is_dir() or script.exists())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{short_repr(path)} is not the path of a script: {reason}; give that of a Python file"
        ) from None
    if not there:
        hint = f"type -m {path}" if find_module(path, str(Path.cwd())) else "give the path of a Python file"
        raise UsageError(f"there is no script {short_repr(path)} in {Path.cwd()}: {hint}")
    if script.is_dir():
        if not (script / "__main__.py").is_file() and not (script / "__main__.pyc").is_file():
            raise UsageError(f"{path!r} is a directory without __main__.py: give the path of a Python file in it")
    elif not os.access(script, os.R_OK):
        raise UsageError(f"the script {path!r} cannot be read: make it readable, e.g. chmod u+r")


def _check_program(program: str) -> None:
    if shutil.which(program) is None:
        is_file = os.path.isfile(program)  # noqa: PTH113 - takes names that no file can have
        problem = "is not executable: type chmod +x for it" if is_file else "is neither a file nor a program in PATH"
        raise UsageError(f"--no-python: {short_repr(program)} {problem}")
