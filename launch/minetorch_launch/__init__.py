"""Starts one training process per device and keeps them together.

From Python: ``launch(Script("train.py"), LaunchOptions(nproc=4))``; from a shell: ``minetorch-launch``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minetorch_launch.errors import LaunchError, StartError, StoppedError, UsageError, WorkerFailedError
    from minetorch_launch.failures.report import FailureReport
    from minetorch_launch.launcher import LaunchResult, launch
    from minetorch_launch.plan import LaunchOptions
    from minetorch_launch.target import Function, Module, Script

__all__ = [
    "FailureReport",
    "Function",
    "LaunchError",
    "LaunchOptions",
    "LaunchResult",
    "Module",
    "Script",
    "StartError",
    "StoppedError",
    "UsageError",
    "WorkerFailedError",
    "launch",
]


def __getattr__(name: str) -> object:
    # Every worker imports this package for its worker.py, and shall not load the launcher with it.
    if name in __all__:
        for home in ("errors", "target", "plan", "failures.report", "launcher"):
            module = import_module(f"minetorch_launch.{home}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
