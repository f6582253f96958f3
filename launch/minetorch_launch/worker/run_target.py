"""Runs the target in a worker process as ``python`` would run it.

A forked process has a ``__main__`` of its own, which is not the script's. Everything here undoes that difference.
"""

from __future__ import annotations

import builtins
import importlib.machinery
import io
import os
import pickle
import runpy
import stat
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minetorch_launch.errors import UsageError
from minetorch_launch.target import Command, Function, Module, Script

if TYPE_CHECKING:
    from minetorch_launch.target import Target

__all__ = ["OWN_FILES", "Task", "make_task", "run_target"]

OWN_FILES = frozenset({__file__, runpy.__file__, "<frozen runpy>", "<frozen importlib._bootstrap>"})
"""Files of the frames above the target's own in a traceback."""

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
        pickled = _pickled(target)
        return Task("function", "", function=pickled, main=_caller_main() if b"__main__" in pickled else None)
    if isinstance(target, Command):
        return Task("command", target.program, target.args)
    if isinstance(target, Module):
        return Task("module", target.name, target.args, path)
    if target.is_application:
        return Task("application", target.path, target.args, path)
    return Task("script", target.path, target.args, path, source=_source_of_pipe(target.path))


def run_target(task: Task) -> bytes | None:
    """Run the target in this process, as its main program.

    Whatever it raises comes out, SystemExit too.

    Returns:
        What a function returned, pickled; None for the other kinds.
    """
    if task.sys_path is not None:
        sys.path[:] = task.sys_path
    if task.kind == "function":
        return _call(task)
    if task.kind == "module":
        _fresh_main()
        sys.argv = ["-m", *task.args]
        runpy._run_module_as_main(task.name)  # type: ignore[attr-defined]
    elif task.kind == "application":
        _fresh_main()
        sys.argv = [task.name, *task.args]
        # As Python itself starts one: the module `__main__` of sys.path[0], which is the application.
        runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined]
    elif task.kind == "script":
        sys.argv = [task.name, *task.args]
        _run_script(task)
    else:
        raise ValueError(f"a {task.kind} is executed, not run in this process")
    return None


def _run_script(task: Task) -> None:
    main = _fresh_main()
    file = os.path.join(os.getcwd(), task.name)  # noqa: PTH109, PTH118 - as Python does, "a/../b" and all
    main.__file__, main.__cached__ = file, None
    if file.endswith(".pyc"):
        compiled = importlib.machinery.SourcelessFileLoader("__main__", file)
        main.__loader__ = compiled
        exec(compiled.get_code("__main__"), main.__dict__)
        return
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", file)
    source = task.source
    if source is None:
        with io.open_code(file) as opened:
            source = opened.read()
    exec(compile(source, file, "exec", dont_inherit=True), main.__dict__)


def _fresh_main() -> Any:
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    main.__annotations__ = {}
    # The second name is the one that multiprocessing's children use when they send the script's objects back.
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    return main


def _call(task: Task) -> bytes:
    if task.main is not None:
        _import_main(*task.main)
    call, args, kwargs = pickle.loads(task.function or b"")
    return pickle.dumps(call(*args, **kwargs))


def _import_main(how: Literal["path", "name"], where: str) -> None:
    """Import the caller's main program under the name that multiprocessing gives it, so that its guard is false."""
    main = types.ModuleType("__mp_main__")
    if how == "name":
        namespace = runpy.run_module(where, run_name="__mp_main__", alter_sys=True)
    else:
        namespace = runpy.run_path(where, run_name="__mp_main__")
    main.__dict__.update(namespace)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main


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


def _pickled(target: Function) -> bytes:
    try:
        return pickle.dumps((target.call, target.args, dict(target.kwargs)))
    except Exception as error:  # whatever a class of the user's raises
        raise UsageError(
            f"{target} cannot be sent to the workers ({type(error).__name__}: {error}): "
            "define the function at the top level of a module, and give it arguments that pickle takes"
        ) from error


def _sys_path(root: str | None, *, own_process: bool) -> tuple[str, ...] | None:
    if root is None:
        return None
    if getattr(sys.flags, "safe_path", False):  # python -P: the script's folder is not on the path
        return tuple(sys.path)
    return (root, *(sys.path[1:] if own_process else sys.path))


def _source_of_pipe(path: str) -> bytes | None:
    """What can be read only once, and only here: ``/dev/stdin``, ``<(…)`` of a shell, a named pipe."""
    try:
        if stat.S_ISREG(Path(path).stat().st_mode):
            return None
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"the script {path!r} cannot be read ({error.strerror}): give a Python file") from None
