"""``launch(target, options)``: discover, plan, run, report."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minetorch_launch import devices, forkserver
from minetorch_launch.channel import Channel
from minetorch_launch.console import Console, terminal_columns, wants_colour
from minetorch_launch.errors import StoppedEarlyError, UsageError, WorkerFailedError
from minetorch_launch.guard import Guard
from minetorch_launch.plan import LaunchOptions, LaunchPlan, make_plan
from minetorch_launch.signals import Signals
from minetorch_launch.target import Function, Module, Script, Target, check_target, find_module, likely_imports
from minetorch_launch.worker import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from minetorch_launch.slurm.job import SlurmJob

__all__ = ["LaunchResult", "launch", "plan_launch"]

_OUT_AND_ERR = 1, 2


@dataclass(frozen=True)
class LaunchResult:
    """What a launch that ended well leaves."""

    returned: tuple[Any, ...]
    """By rank, of this machine's workers: what a function returned; None for scripts and modules."""


def launch(
    target: Target,
    options: LaunchOptions | None = None,
    *,
    own_process: bool = False,
    job: SlurmJob | None = None,
    streams: tuple[int, int] = _OUT_AND_ERR,
) -> LaunchResult:
    """Run ``target`` in one process per worker, on this machine, until all have ended well or one has failed.

    With ``options.nodes`` the same call is made on each machine, and the workers of all are one job.

    The workers' lines appear on this process's stdout and stderr, or on other ``streams``. Called in the main
    thread, it takes signals while it runs (`minetorch_launch.signals` lists them), and stops the workers on
    SIGINT, SIGTERM and SIGHUP.

    Args:
        target: a `Script`, `Module` or `Function` of `minetorch_launch.target`.
        options: how many workers, on what, restarted how often.
        own_process: this process exists for the launch alone, so ``sys.path[0]`` is the launcher's own and
            not the target's business. For the command line.
        job: the SLURM job of which this is a launcher; it says what ``options`` leave open.
        streams: descriptors that the workers' stdout and stderr go to, in whole lines.

    Raises:
        UsageError: before anything is started, if the target or an option cannot work.
        WorkerFailedError: a worker failed, or all hung; its ``report`` says which and why.
        StoppedEarlyError: the workers stopped before their work was done, with all of it saved.
        StartError: no worker could be started.
        JoinError: the machines did not come together.
        StoppedError: one of the signals above came; the workers are gone.
    """
    plan = plan_launch(target, options or LaunchOptions(), job, streams)
    if plan.log_dir is not None:
        _prepare_log_dir(plan.log_dir)
    # What is in the fork server's environment for its own sake must not reach the script.
    env = {**plan.env, **{name: os.environ.get(name) for name in (*_preload_env(plan), *_FOR_TORCHS_AGENT)}}
    mask = tuple(int(signum) for signum in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    with ExitStack() as stack:
        signals = stack.enter_context(Signals(plan.notices, _tells_all(job)))
        console = Console(
            *streams,
            log_dir=plan.log_dir,
            node=plan.node.short_name if plan.many_nodes else None,
            show=plan.show,
            colour=wants_colour(os.environ),
        )
        stack.callback(console.close)
        guard = stack.enter_context(Guard())
        stack.enter_context(forkserver.environment({**plan.env, **_FOR_TORCHS_AGENT}))
        if plan.start_method == "forkserver":
            with forkserver.environment(_preload_env(plan)):
                stack.enter_context(forkserver.fork_server(plan.preload, guard))
        if not isinstance(target, Function):
            stack.enter_context(forkserver.without_main())
        channel = stack.enter_context(Channel(console, guard))
        signals.defer()  # an exception in the middle of torch's import can abort the process (SIGABRT)
        quiet = {"TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")}
        with forkserver.environment(quiet), _collector_off():
            from minetorch_launch.engine import Engine  # torch: only now, while the fork server imports it, too

        signals.check()
        engine = Engine(
            plan,
            _task(plan, channel, mask, env, own_process=own_process),
            channel=channel,
            guard=guard,
            signals=signals,
            console=console,
        )
        outcome = engine.run()
        if outcome.failure is not None:
            if plan.log_dir is not None:
                _failure_file(plan.log_dir).write_text(outcome.failure.to_json() + "\n", encoding="utf-8")
            raise WorkerFailedError(outcome.failure, told_elsewhere=outcome.told_elsewhere)
        if outcome.stopped_early:
            raise StoppedEarlyError
        return LaunchResult(_returned(channel, outcome.ranks))


@contextmanager
def _collector_off() -> Iterator[None]:
    """Import without looking for garbage, which takes an eighth of torch's import, and of which there is none."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def plan_launch(
    target: Target,
    options: LaunchOptions,
    job: SlurmJob | None = None,
    streams: tuple[int, int] = _OUT_AND_ERR,
) -> LaunchPlan:
    """What `launch` would do: looks at the machine and the target, starts nothing, imports no torch.

    Raises:
        UsageError: if the target or an option cannot work.
    """
    check_target(target)
    for module in options.preload:
        if not find_module(module, target.import_root):
            raise UsageError(f"--preload {module}: there is no such module; give a name that `import` would take")
    if options.log_dir is not None:
        _check_log_dir(options.log_dir)
    out, err = streams
    columns = terminal_columns(err) or terminal_columns(out)
    node = devices.find_node(os.environ)
    deadline = None
    if job is not None:
        from minetorch_launch.slurm.commands import find_address, find_deadline
        from minetorch_launch.slurm.job import fill_in

        node = replace(node, cores=job.cores(node.cores))
        has_gpus = bool(node.gpus) and options.device != "cpu"
        options = fill_in(options, job, has_gpus, find_address)
        deadline = find_deadline(job, options.notice_before)
    return make_plan(
        target,
        options,
        node,
        os.environ,
        columns=columns,
        imports=likely_imports(target),
        deadline=deadline,
        in_job=job is not None,
    )


def _tells_all(job: SlurmJob | None) -> Callable[[int], bool] | None:
    """What knows by its process id whether the sender of a signal has sent it to the workers, too."""
    if job is None:
        return None
    from minetorch_launch.slurm.commands import is_slurmstepd

    return is_slurmstepd


_FOR_TORCHS_AGENT = {
    "TORCH_MP_PARALLEL_START": "1",
    # Torch's handlers would raise in the middle of anything; ours only note, see stopping.py.
    "TORCHELASTIC_SIGNALS_TO_HANDLE": "",
    # The workers' store is ours, a new one for each attempt: torch need not open another.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


def _preload_env(plan: LaunchPlan) -> dict[str, str]:
    """What the fork server needs while it imports, over and above."""
    # A preloaded module that asks whether there is a GPU must not start CUDA: it does not survive a fork.
    env = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    root = plan.target.import_root
    if root is not None and any(not module.startswith(("torch.", "minetorch.")) for module in plan.preload):
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


def _returned(channel: Channel, ranks: tuple[int, ...]) -> tuple[Any, ...]:
    heard = channel.heard()
    results = (heard[rank].result if rank in heard else None for rank in ranks)
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
