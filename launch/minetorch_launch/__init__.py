"""Starts one training process per device and keeps them together.

From Python: ``launch(Script("train.py"), LaunchOptions(nproc=4))``; from a shell: ``minetorch-launch``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minetorch_launch.api import LaunchResult, launch
    from minetorch_launch.errors import JoinError, LaunchError, StartError, StoppedEarlyError, StoppedError, UsageError
    from minetorch_launch.failures.report import FailureReport, WorkerFailedError
    from minetorch_launch.heartbeat import beat
    from minetorch_launch.options import LaunchOptions
    from minetorch_launch.target import Command, Function, Module, Script

_HOMES = {
    "minetorch_launch.api": ("LaunchResult", "launch"),
    "minetorch_launch.errors": (
        "JoinError",
        "LaunchError",
        "StartError",
        "StoppedEarlyError",
        "StoppedError",
        "UsageError",
    ),
    "minetorch_launch.failures.report": ("FailureReport", "WorkerFailedError"),
    "minetorch_launch.heartbeat": ("beat",),
    "minetorch_launch.options": ("LaunchOptions",),
    "minetorch_launch.target": ("Command", "Function", "Module", "Script"),
}

__all__ = [
    "Command",
    "FailureReport",
    "Function",
    "JoinError",
    "LaunchError",
    "LaunchOptions",
    "LaunchResult",
    "Module",
    "Script",
    "StartError",
    "StoppedEarlyError",
    "StoppedError",
    "UsageError",
    "WorkerFailedError",
    "beat",
    "launch",
]


def __getattr__(name: str) -> object:
    # Every worker imports this package, and must not load the launcher with it.
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
