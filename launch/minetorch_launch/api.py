"""``launch()``: the launcher from Python. It starts the command, and leaves the caller's process as it is."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from minetorch_launch import errors, launcher
from minetorch_launch.attempt import Outcome
from minetorch_launch.errors import LaunchError, StartError, StoppedEarlyError, StoppedError
from minetorch_launch.failures.report import WorkerFailedError
from minetorch_launch.options import LaunchOptions
from minetorch_launch.processes.requests import memory_file
from minetorch_launch.processes.spawner import python_command
from minetorch_launch.target import Target
from minetorch_launch.worker.task import make_task


@dataclass(frozen=True)
class LaunchResult:
    """What a launch leaves whose workers all succeeded."""

    returned: tuple[Any, ...]
    """By rank, of this machine's workers: what a function returned; None for scripts and modules."""


@dataclass(frozen=True)
class _PlannedFunction:
    """Stands for a function in the plan: the launcher's process need not be able to import it."""

    name: str
    import_root: None = None

    def __str__(self) -> str:
        return self.name


def launch(
    target: Target,
    options: LaunchOptions | None = None,
    *,
    streams: tuple[int, int] = (1, 2),
    env: Mapping[str, str] | None = None,
) -> LaunchResult:
    """Run ``target`` in one process per worker, on this machine, until all have succeeded or one has failed.

    With ``options.nodes`` the same call is made on each machine, and the workers of all are one job. The launcher runs
    in a process of its own; it ends, with all workers, when this process ends. KeyboardInterrupt stops the workers.

    Args:
        target: a `Script`, `Module`, `Function` or `Command` of `minetorch_launch.target`.
        options: how many workers, on which devices, restarted how often.
        streams: descriptors that the workers' stdout and stderr go to, in whole lines.
        env: variables of the workers beside this process's own.

    Raises:
        UsageError: before anything is started, if the target or an option cannot work.
        WorkerFailedError: a worker failed, or all hung; its ``report`` says which and why. It is raised from the
            worker's own exception where that can be sent between processes.
        StoppedEarlyError: the workers stopped before their work was done, with all of it saved.
        StartError: no worker could be started.
        JoinError: the machines did not come together.
        StoppedError: a signal stopped the launcher.
        KeyboardInterrupt: Ctrl-C; the workers are gone.
    """
    plan = launcher.plan_launch(target, options or LaunchOptions(), streams=streams)
    task = make_task(target, own_process=False)
    if task.kind == "function":
        plan = replace(plan, target=_PlannedFunction(str(target)))  # type: ignore[arg-type]
    with (
        memory_file(pickle.dumps(launcher.Launch(plan, task, shows_failure=False))) as request,
        memory_file() as reply,
    ):
        _run(request, reply, streams, {**os.environ, **(env or {})})
        reply.seek(0)
        data = reply.read()
    return _result(data)


def _run(request: BinaryIO, reply: BinaryIO, streams: tuple[int, int], env: Mapping[str, str]) -> None:
    parent, alive = os.pipe()  # its closing tells the launcher that this process has ended
    code = f"from minetorch_launch.api import serve; serve({request.fileno()}, {reply.fileno()}, {parent})"
    try:
        process = subprocess.Popen(
            python_command(code),
            stdin=subprocess.DEVNULL,
            stdout=streams[0],
            stderr=streams[1],
            pass_fds=[request.fileno(), reply.fileno(), parent],
            env=env,
            start_new_session=True,  # Ctrl-C comes to this process alone
        )
        os.close(parent)
        interrupted = False
        while process.returncode is None:
            try:
                process.wait()
            except KeyboardInterrupt:
                interrupted = True
                process.send_signal(signal.SIGINT)
    finally:
        os.close(alive)
    if interrupted:
        raise KeyboardInterrupt


def _result(data: bytes) -> LaunchResult:
    if not data:
        raise StartError("the launcher was killed before it could report how the launch ended")
    outcome = pickle.loads(data)
    if isinstance(outcome, tuple):
        name, arguments = outcome
        raise getattr(errors, name)(*arguments)
    if outcome.failure is not None:
        exception = None
        if outcome.exception is not None:
            with suppress(Exception):  # of a class that only the worker knows
                exception = pickle.loads(outcome.exception)
        raise WorkerFailedError(outcome.failure, exception=exception) from exception
    if outcome.stopped_early:
        raise StoppedEarlyError
    return LaunchResult(tuple(None if result is None else pickle.loads(result) for result in outcome.results))


def serve(request: int, reply: int, parent: int) -> None:
    """Be the launcher's process: what `launch` starts."""
    with open(request, "rb") as file:
        requested: launcher.Launch = pickle.load(file)
    try:
        outcome: Outcome | tuple[str, tuple[object, ...]] = asyncio.run(launcher.run(requested, parent))
    except StoppedError as error:
        outcome = "StoppedError", (error.signum,)
    except LaunchError as error:
        outcome = type(error).__name__, (str(error),)
    with open(reply, "wb") as file:
        pickle.dump(outcome, file)
