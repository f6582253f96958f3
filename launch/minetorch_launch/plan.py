"""Decides a whole launch before anything is started: options + machine -> :class:`LaunchPlan`.

Variables that a worker finds in its environment:

=============================  ==========================================================================
RANK, LOCAL_RANK, WORLD_SIZE,  as torchrun sets them; a worker's GPU is ``cuda:LOCAL_RANK``
LOCAL_WORLD_SIZE, GROUP_RANK,
MASTER_ADDR, MASTER_PORT,
TORCHELASTIC_*, ...
MINETORCH_DEVICE               ``cpu`` or ``cuda``: the kind of device this launch was planned for
MINETORCH_CONSOLE_COLUMNS      columns left on a line of the launcher's terminal; unset if it has none.
                               Whoever finds it may draw a progress bar with carriage returns
OMP_NUM_THREADS                threads per worker: ``--threads``, else the user's own, else a fair share
CUDA_VISIBLE_DEVICES           empty on ``cpu``, else left as it is
ACCELERATE_USE_CPU             ``true`` on ``cpu``, else left as it is
=============================  ==========================================================================
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from minetorch_launch.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minetorch_launch.target import Target
    from minetorch_launch.topology import Node

__all__ = ["DEVICES", "START_METHODS", "LaunchOptions", "LaunchPlan", "WorkerPlan", "make_plan"]

DeviceKind = Literal["cpu", "cuda"]
StartMethod = Literal["forkserver", "spawn"]

DEVICES = ("auto", "cpu", "cuda")
START_METHODS = ("forkserver", "spawn")

# Torch hands each worker two descriptors for every worker, and multiprocessing passes on 256 at most.
_FORK_SERVERS_MOST = 125


@dataclass(frozen=True)
class LaunchOptions:
    """What the caller asks for.

    Raises:
        UsageError: at construction, for a value that can never work.
    """

    nproc: int | None = None
    """Workers on this machine; None: one for each visible GPU, or a single one without."""

    device: str = "auto"
    """What the workers compute on: ``auto`` (GPUs if there are any), ``cpu`` or ``cuda``."""

    max_restarts: int = 0
    """How many times a failure starts all workers anew before it ends the launch."""

    log_dir: Path | None = None
    """Folder for ``rank_N.log`` (both streams of one worker) and, after a failure, ``failure.json``."""

    threads: int | None = None
    """OMP_NUM_THREADS of each worker; None: the user's own setting, else usable cores shared out."""

    start_method: str = "forkserver"
    """``forkserver``: fork workers from a process that has imported torch once. ``spawn``: fresh ones."""

    preload: tuple[str, ...] = ()
    """Modules that the fork server imports before it forks, beside torch and what torch needs to train."""

    grace: float = 30.0
    """Seconds that a worker has to end by itself, once told to stop, before it is killed."""

    def __post_init__(self) -> None:
        _at_least("--nproc", self.nproc, 1, "or auto, for one worker per visible GPU")
        _at_least("--threads", self.threads, 1, "or leave it out to share the usable cores out")
        _at_least("--max-restarts", self.max_restarts, 0, "0 ends the launch at the first failure")
        _at_least("--grace", self.grace, 0, "the seconds a worker has to end by itself")
        _one_of("--device", self.device, DEVICES)
        _one_of("--start-method", self.start_method, START_METHODS)
        if self.preload and self.start_method == "spawn":
            raise UsageError("--preload is for the fork server, which --start-method spawn does without: drop one")


@dataclass(frozen=True)
class WorkerPlan:
    """One worker as planned."""

    rank: int
    device: str
    """``cpu`` or ``cuda:N``."""

    log_file: Path | None


@dataclass(frozen=True)
class LaunchPlan:
    """A launch with every choice made; carrying it out needs nothing else."""

    target: Target
    node: Node
    device: DeviceKind
    threads: int
    max_restarts: int
    start_method: StartMethod
    preload: tuple[str, ...]
    grace: float
    log_dir: Path | None
    workers: tuple[WorkerPlan, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables that all workers share, beside torchrun's (the module's table says what each means)."""

    def text(self) -> str:
        """The plan for a person to read: what ``--dry-run`` prints."""
        world = len(self.workers)
        start = "a fork server that imports " + ", ".join(("torch", *self.preload))
        lines = [
            f"command     {self.target}",
            f"host        {self.node.host} ({self.node.cores} usable cores, {len(self.node.gpus)} visible GPUs)",
            f"workers     {world} on {self.device}, {_count(self.threads, 'thread')} each",
            f"start       {self.start_method}: {start if self.start_method == 'forkserver' else 'fresh processes'}",
            f"restarts    at most {self.max_restarts}",
            f"grace       {self.grace:g} s from being told to stop to being killed",
            f"logs        {self.log_dir / 'rank_N.log' if self.log_dir else 'console only'}",
            "every rank  " + " ".join(f"{name}={shlex.quote(value)}" for name, value in self.env.items()),
        ]
        lines += [
            f"rank {worker.rank:<6} RANK={worker.rank} LOCAL_RANK={worker.rank} "
            f"WORLD_SIZE={world} LOCAL_WORLD_SIZE={world} device={worker.device}"
            for worker in self.workers
        ]
        return "\n".join(lines)


def make_plan(
    target: Target,
    options: LaunchOptions,
    node: Node,
    environ: Mapping[str, str],
    *,
    columns: int | None = None,
    trains: bool = False,
) -> LaunchPlan:
    """Make every choice of a launch. Pure: touches neither the machine nor the environment.

    Args:
        target: what each worker runs.
        options: what the caller asked for.
        node: the machine, as found by :mod:`minetorch_launch.devices`.
        environ: the launcher's own environment.
        columns: width of the launcher's terminal; None if its output goes elsewhere.
        trains: the target is likely to make an optimizer, at which torch imports its compiler, ``torch._dynamo``:
            almost as much again as torch itself. The fork server then does that once for all.

    Raises:
        UsageError: when the machine cannot do what the options ask for.
    """
    device = _choose_device(options, node)
    nproc = options.nproc or (len(node.gpus) if device == "cuda" else 1)
    if device == "cuda" and nproc > len(node.gpus):
        raise UsageError(
            f"--nproc {nproc} is more than the {_count(len(node.gpus), 'visible GPU')}: "
            f"type --nproc {len(node.gpus)}, or --device cpu to do without"
        )
    if nproc > _FORK_SERVERS_MOST and options.start_method == "forkserver":
        raise UsageError(
            f"--nproc {nproc} is more than the {_FORK_SERVERS_MOST} workers of a fork server: "
            "type --start-method spawn as well"
        )
    threads = _choose_threads(options.threads, environ, node.cores, nproc)
    log_dir = options.log_dir
    return LaunchPlan(
        target=target,
        node=node,
        device=device,
        threads=threads,
        max_restarts=options.max_restarts,
        start_method="spawn" if options.start_method == "spawn" else "forkserver",
        preload=(*(("torch._dynamo",) if trains and options.start_method == "forkserver" else ()), *options.preload),
        grace=options.grace,
        log_dir=log_dir,
        workers=tuple(
            WorkerPlan(
                rank=rank,
                device=f"cuda:{rank}" if device == "cuda" else "cpu",
                log_file=log_dir / f"rank_{rank}.log" if log_dir else None,
            )
            for rank in range(nproc)
        ),
        env=_environment(device, threads, columns, nproc) | (_own_threads(environ) if options.threads is None else {}),
    )


def _choose_device(options: LaunchOptions, node: Node) -> DeviceKind:
    if options.device == "cuda" and not node.gpus:
        raise UsageError(f"--device cuda needs a GPU, but {node.no_gpu_because}: type --device cpu")
    if options.device == "cpu" or not node.gpus:
        return "cpu"
    return "cuda"


def _choose_threads(asked: int | None, environ: Mapping[str, str], cores: int, nproc: int) -> int:
    if asked is not None:
        return asked
    own = _own_threads(environ).get("OMP_NUM_THREADS")
    return int(own.split(",")[0]) if own else max(1, cores // nproc)


def _own_threads(environ: Mapping[str, str]) -> dict[str, str]:
    """The user's own setting. OpenMP allows a list, one number per nesting level; nonsense counts as unset."""
    own = environ.get("OMP_NUM_THREADS", "")
    first = own.split(",")[0].strip()
    return {"OMP_NUM_THREADS": own} if first.isdecimal() and int(first) > 0 else {}


def _environment(device: DeviceKind, threads: int, columns: int | None, nproc: int) -> dict[str, str]:
    env = {"MINETORCH_DEVICE": device, "OMP_NUM_THREADS": str(threads)}
    if device == "cpu":
        env |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    if columns is not None:
        prefix = len(f"[{nproc - 1}] ")
        env["MINETORCH_CONSOLE_COLUMNS"] = str(max(20, columns - prefix))
    return env


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _at_least(option: str, value: float | None, least: int, instead: str) -> None:
    if value is not None and not value >= least:
        raise UsageError(f"{option} {value} is too small: type a number from {least} up, {instead}")


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{option} {value} is unknown: type {option} {'|'.join(allowed)}")
