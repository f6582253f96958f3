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
import sys
import types
from typing import Any, Literal

from minetorch_launch.worker.task import Task


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
        exec(compiled.get_code("__main__") or b"", main.__dict__)
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
