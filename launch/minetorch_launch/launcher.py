"""``launch(target, options)``: discover, plan, run, report."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minetorch_launch import devices, forkserver
from minetorch_launch.channel import Channel
from minetorch_launch.console import Console, terminal_columns
from minetorch_launch.errors import UsageError, WorkerFailedError
from minetorch_launch.guard import Guard
from minetorch_launch.plan import LaunchOptions, LaunchPlan, make_plan
from minetorch_launch.stopping import Stop
from minetorch_launch.target import Function, Module, Script, Target, check_target, find_module, likely_trains
from minetorch_launch.worker import Task

if TYPE_CHECKING:
    from minetorch_launch.report import FailureReport, RankFailure

__all__ = ["LaunchResult", "launch", "plan_launch"]

_OUT, _ERR = 1, 2


@dataclass(frozen=True)
class LaunchResult:
    """What a launch that ended well leaves."""

    returned: tuple[Any, ...]
    """By rank: what a :class:`~minetorch_launch.target.Function` returned; None for scripts and modules."""


def launch(target: Target, options: LaunchOptions | None = None, *, own_process: bool = False) -> LaunchResult:
    """Run ``target`` in one process per worker, on this machine, until all have ended well or one has failed.

    The workers' lines appear on this process's stdout and stderr. Called in the main thread, it takes SIGINT,
    SIGTERM and SIGHUP while it runs, and stops the workers on them.

    Args:
        target: a :class:`Script`, :class:`Module` or :class:`Function` of :mod:`minetorch_launch.target`.
        options: how many workers, on what, restarted how often.
        own_process: this process exists for the launch alone, so ``sys.path[0]`` is the launcher's own and
            not the target's business. For the command line.

    Raises:
        UsageError: before anything is started, if the target or an option cannot work.
        WorkerFailedError: a worker failed; its ``report`` says which and why.
        StartError: no worker could be started.
        StoppedError: one of the signals above came; the workers are gone.
    """
    plan = plan_launch(target, options or LaunchOptions())
    if plan.log_dir is not None:
        _prepare_log_dir(plan.log_dir)
    logs = {worker.rank: worker.log_file for worker in plan.workers if worker.log_file}
    # What is in the fork server's environment for its own sake must not reach the script.
    env = {**plan.env, **{name: os.environ.get(name) for name in (*_preload_env(plan), *_FOR_TORCHS_AGENT)}}
    mask = tuple(int(signum) for signum in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    with ExitStack() as stack:
        stop = stack.enter_context(Stop())
        console = Console(_OUT, _ERR, logs)
        stack.callback(console.close)
        for rank in logs:  # one log may hold many launches, of which the last is not always the one to read
            console.log(rank, f"minetorch-launch: {time.strftime('%F %T')} {target} as rank {rank} of {len(logs)}")
        guard = stack.enter_context(Guard())
        stack.enter_context(forkserver.environment({**plan.env, **_FOR_TORCHS_AGENT}))
        if plan.start_method == "forkserver":
            with forkserver.environment(_preload_env(plan)):
                stack.enter_context(forkserver.fork_server(plan.preload, guard))
        if not isinstance(target, Function):
            stack.enter_context(forkserver.without_main())
        channel = stack.enter_context(Channel(console, guard))
        stop.defer()  # an exception in the middle of torch's import can abort the process (SIGABRT)
        from minetorch_launch.engine import Engine  # torch: only now, while the fork server imports it, too

        stop.check()
        engine = Engine(
            plan,
            _task(plan, channel, mask, env, own_process=own_process),
            channel=channel,
            guard=guard,
            stop=stop,
            say=console.say,
            on_restart=lambda failure, number: _announce(console, plan, failure, number),
        )
        failure = engine.run()
        if failure is not None:
            _keep(console, plan, failure)
            raise WorkerFailedError(failure)
        return LaunchResult(_returned(channel, len(plan.workers)))


def plan_launch(target: Target, options: LaunchOptions) -> LaunchPlan:
    """What :func:`launch` would do: looks at the machine and the target, starts nothing, imports no torch.

    Raises:
        UsageError: if the target or an option cannot work.
    """
    check_target(target)
    for module in options.preload:
        if not find_module(module, target.import_root):
            raise UsageError(f"--preload {module}: there is no such module; give a name that `import` would take")
    if options.log_dir is not None:
        _check_log_dir(options.log_dir)
    columns = terminal_columns(_ERR) or terminal_columns(_OUT)
    node = devices.find_node(os.environ)
    return make_plan(target, options, node, os.environ, columns=columns, trains=likely_trains(target))


_FOR_TORCHS_AGENT = {
    "TORCH_MP_PARALLEL_START": "1",
    # Torch's handlers would raise in the middle of anything; ours only note, see stopping.py.
    "TORCHELASTIC_SIGNALS_TO_HANDLE": "",
}


def _preload_env(plan: LaunchPlan) -> dict[str, str]:
    """What the fork server needs while it imports, over and above."""
    # A preloaded module that asks whether there is a GPU must not start CUDA: it does not survive a fork.
    env = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    root = plan.target.import_root
    if root is not None and any(not module.startswith("torch.") for module in plan.preload):
        # It shall find modules that lie beside the script, as the script itself will.
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return env


def _task(
    plan: LaunchPlan, channel: Channel, mask: tuple[int, ...], env: dict[str, str | None], *, own_process: bool
) -> Task:
    target = plan.target
    root = target.import_root
    path = None
    if root is not None:
        rest = sys.path[1:] if own_process and not getattr(sys.flags, "safe_path", False) else sys.path
        path = tuple(rest) if getattr(sys.flags, "safe_path", False) else (root, *rest)
    return Task(
        address=channel.address,
        token=channel.token,
        signal_mask=mask,
        forked=plan.start_method == "forkserver",
        env=env,
        script=target.path if isinstance(target, Script) else None,
        module=target.name if isinstance(target, Module) else None,
        function=(target.call, target.args, target.kwargs) if isinstance(target, Function) else None,
        args=target.args if not isinstance(target, Function) else (),
        sys_path=path,
    )


def _announce(console: Console, plan: LaunchPlan, failure: FailureReport, number: int) -> None:
    first = failure.first
    for line in first.traceback.splitlines():
        console.say(f"[{first.rank}] {line}")
    said = f"minetorch-launch: {failure.line()}; restart {number} of {plan.max_restarts} of all workers"
    _log_traceback(console, first)
    for worker in plan.workers:
        console.log(worker.rank, said)
    console.say(said)


def _keep(console: Console, plan: LaunchPlan, failure: FailureReport) -> None:
    for rank_failure in (failure.first, *failure.later):
        _log_traceback(console, rank_failure)
    if plan.log_dir is not None:
        _failure_file(plan.log_dir).write_text(failure.to_json() + "\n", encoding="utf-8")


def _log_traceback(console: Console, failure: RankFailure) -> None:
    """Into the rank's own log, which its worker could not write: the screen shows it in the report."""
    if failure.traceback:
        console.log(failure.rank, failure.traceback.rstrip("\n"))


def _returned(channel: Channel, world_size: int) -> tuple[Any, ...]:
    heard = channel.heard()
    results = (heard[rank].result if rank in heard else None for rank in range(world_size))
    return tuple(None if result is None else pickle.loads(result) for result in results)


def _failure_file(log_dir: Path) -> Path:
    return log_dir / "failure.json"


def _check_log_dir(log_dir: Path) -> None:
    """Raise unless ``log_dir`` can be made or written to; make nothing yet."""
    nearest = next((place for place in (log_dir, *log_dir.absolute().parents) if place.exists()), Path("/"))
    if not nearest.is_dir():
        raise UsageError(f"--log-dir {log_dir}: {nearest} is a file; give the path of a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"--log-dir {log_dir}: {nearest} is not writable; give a folder that you may write to")


def _prepare_log_dir(log_dir: Path) -> None:
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        _failure_file(log_dir).unlink(missing_ok=True)  # an earlier launch's, not this one's
    except OSError as error:
        raise UsageError(f"--log-dir {log_dir}: {error.strerror}; give a folder that you may write to") from None
