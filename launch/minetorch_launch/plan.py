"""Decides a whole launch before anything is started: options + machine -> :class:`LaunchPlan`.

Variables that a worker finds in its environment:

=============================  ==========================================================================
RANK, LOCAL_RANK, WORLD_SIZE,  as torchrun sets them; a worker's GPU is ``cuda:LOCAL_RANK``
LOCAL_WORLD_SIZE, GROUP_RANK,
MASTER_ADDR, MASTER_PORT,
TORCHELASTIC_*, ...
MINETORCH_DEVICE               ``cpu`` or ``cuda``: the kind of device this launch was planned for
MINETORCH_ATTEMPT              which start of all workers this is, from 1; unlike TORCHELASTIC_RESTART_COUNT it also
                               counts those for a machine that went or came
MINETORCH_LAST_STEP,           after a failure: the step that a Trainer had reached, and when it failed, as Unix time in
MINETORCH_LAST_TIME            seconds
MINETORCH_HEARTBEAT_FD         descriptor of the memory in which a Trainer says how far it is (see watch.py)
MINETORCH_CONSOLE_COLUMNS      columns left on a line of the launcher's terminal; unset if it has none.
                               Whoever finds it may draw a progress bar with carriage returns
OMP_NUM_THREADS                threads per worker: ``--threads``, else the user's own, else a fair share
CUDA_VISIBLE_DEVICES           empty on ``cpu``, else left as it is
ACCELERATE_USE_CPU             ``true`` on ``cpu``, else left as it is
=============================  ==========================================================================

On one node a worker's RANK is its LOCAL_RANK. On many the ranks follow the order of the nodes, and all of
RANK, WORLD_SIZE, GROUP_RANK, MASTER_ADDR and MASTER_PORT are known only when the nodes have met.
"""

from __future__ import annotations

import shlex
import signal
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from minetorch_launch.errors import UsageError
from minetorch_launch.joining import Endpoint, parse_endpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minetorch_launch.slurm.job import Deadline
    from minetorch_launch.target import Target
    from minetorch_launch.topology import Node

__all__ = ["DEVICES", "SHOWS", "START_METHODS", "LaunchOptions", "LaunchPlan", "WorkerPlan", "make_plan"]

DeviceKind = Literal["cpu", "cuda"]
StartMethod = Literal["forkserver", "spawn"]

DEVICES = ("auto", "cpu", "cuda")
START_METHODS = ("forkserver", "spawn")
SHOWS = ("all", "0", "failed")

# Those that a launcher may be told to pass on; the others have a meaning of their own to it or to Python.
_NOTICES = ("SIGUSR1", "SIGUSR2", "SIGTERM", "SIGHUP", "SIGINT", "SIGCONT", "SIGALRM", "SIGXCPU", "SIGPWR")

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

    notice_signals: tuple[str, ...] | None = None
    """Signals to the launcher that tell the workers "stop soon", without ending the launch; None: SIGUSR2, and
    SIGTERM within SLURM. A worker that would die of such a signal gets it only where it is a stop signal."""

    show: str = "all"
    """Whose lines appear on the console: ``all``, ``0`` (rank 0's) or ``failed`` (a failed rank's last ones)."""

    hang_timeout: float | None = None
    """Seconds without a step of any worker that make a hang; None: derived from the steps seen, at least 300."""

    nodes: tuple[int, int] | None = None
    """The least and the most machines of this job; None: this one, or all of a SLURM job's. With fewer than the most
    it runs on with those it has."""

    rdzv: str | None = None
    """``HOST[:PORT]`` at which the machines meet: one of them, the same for all."""

    node_rank: int | None = None
    """This machine's place in the order of ranks; None: the rendezvous host first, then by host name."""

    run_id: str | None = None
    """What this job's launchers have in common and no other's; None: derived from the command."""

    notice_before: float | None = None
    """Seconds before the end of a SLURM job at which the workers get their notice; None: 120, at most a tenth of it."""

    join_timeout: float = 600.0
    """Seconds to wait for the least number of machines, at the start and after one is lost."""

    def __post_init__(self) -> None:
        _at_least("--nproc", self.nproc, 1, "or auto, for one worker per visible GPU")
        _at_least("--threads", self.threads, 1, "or leave it out to share the usable cores out")
        _at_least("--max-restarts", self.max_restarts, 0, "0 ends the launch at the first failure")
        _at_least("--grace", self.grace, 0, "the seconds a worker has to end by itself")
        _above_zero("--hang-timeout", self.hang_timeout, "the seconds without a step that make a hang")
        _above_zero("--join-timeout", self.join_timeout, "the seconds to wait for the other nodes")
        _at_least("--notice-before", self.notice_before, 0, "the seconds before the end of the job")
        _at_least("--node-rank", self.node_rank, 0, "this node's place in the order of ranks")
        _one_of("--device", self.device, DEVICES)
        _one_of("--start-method", self.start_method, START_METHODS)
        _one_of("--show", self.show, SHOWS)
        for name in self.notice_signals or ():
            _one_of("--notice-signals", name, _NOTICES)
        self._check_nodes()
        if self.preload and self.start_method == "spawn":
            raise UsageError("--preload is for the fork server, which --start-method spawn does without: drop one")

    def _check_nodes(self) -> None:
        least, most = self.nodes or (1, 1)
        if not 1 <= least <= most:
            raise UsageError(f"--nodes {least}:{most} is no range: type e.g. --nodes 4, or --nodes 2:4 for 2 to 4")
        if self.nodes == (1, 1) and self.rdzv is not None:
            raise UsageError(f"--rdzv {self.rdzv} is for many nodes: type --nodes N as well, or drop it")
        if self.nodes is not None and self.node_rank is not None and self.node_rank >= most:
            raise UsageError(f"--node-rank {self.node_rank} with {_range(self.nodes)} nodes: type 0 to {most - 1}")
        if self.rdzv is not None:
            parse_endpoint(self.rdzv)


@dataclass(frozen=True)
class WorkerPlan:
    """One worker as planned."""

    local_rank: int
    device: str
    """``cpu`` or ``cuda:N``."""


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
    notices: tuple[signal.Signals, ...]
    show: str
    hang_timeout: float | None
    nodes: tuple[int, int]
    rdzv: Endpoint | None
    node_rank: int | None
    run_id: str
    join_timeout: float
    deadline: Deadline | None
    log_dir: Path | None
    workers: tuple[WorkerPlan, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables that all workers share, beside torchrun's (the module's table says what each means)."""

    @property
    def many_nodes(self) -> bool:
        """Whether this is one of several machines."""
        return self.nodes[1] > 1

    def log_file(self, rank: int) -> Path | None:
        """Where the lines of global rank ``rank`` are kept."""
        return self.log_dir / f"rank_{rank}.log" if self.log_dir else None

    def text(self) -> str:
        """The plan for a person to read: what ``--dry-run`` prints."""
        world = len(self.workers)
        start = "a fork server that imports " + ", ".join(("torch", *self.preload))
        lines = [
            f"command     {self.target}",
            f"host        {self.node.host} ({self.node.cores} usable cores, {len(self.node.gpus)} visible GPUs)",
            f"workers     {world} on {self.device}, {_count(self.threads, 'thread')} each",
            f"start       {self.start_method}: {start if self.start_method == 'forkserver' else 'fresh processes'}",
            f"nodes       {self._nodes_text()}",
            f"restarts    at most {self.max_restarts}",
            f"grace       {self.grace:g} s from being told to stop to being killed",
            f"notice      {', '.join(signum.name for signum in self.notices) or 'none'}",
            f"hang after  {_seconds_text(self.hang_timeout)}",
            f"logs        {self.log_dir / 'rank_N.log' if self.log_dir else 'console only'}; shown: {self.show}",
            "every rank  " + " ".join(f"{name}={shlex.quote(value)}" for name, value in self.env.items()),
        ]
        lines += [f"rank {self._rank_text(worker)}" for worker in self.workers]
        return "\n".join(lines)

    def _rank_text(self, worker: WorkerPlan) -> str:
        local, world = worker.local_rank, len(self.workers)
        if self.many_nodes:
            return f"*+{local:<4} LOCAL_RANK={local} LOCAL_WORLD_SIZE={world} device={worker.device}"
        return (
            f"{local:<6} RANK={local} LOCAL_RANK={local} "
            f"WORLD_SIZE={world} LOCAL_WORLD_SIZE={world} device={worker.device}"
        )

    def _nodes_text(self) -> str:
        if self.rdzv is None:
            return "this one"
        place = f"; this one is number {self.node_rank}" if self.node_rank is not None else ""
        return f"{_range(self.nodes)}, meeting at {self.rdzv} as {self.run_id}{place}"


def make_plan(
    target: Target,
    options: LaunchOptions,
    node: Node,
    environ: Mapping[str, str],
    *,
    columns: int | None = None,
    imports: tuple[str, ...] = (),
    deadline: Deadline | None = None,
    in_job: bool = False,
) -> LaunchPlan:
    """Make every choice of a launch. Pure: touches neither the machine nor the environment.

    Args:
        target: what each worker runs.
        options: what the caller asked for.
        node: the machine, as found by :mod:`minetorch_launch.devices`.
        environ: the launcher's own environment.
        columns: width of the launcher's terminal; None if its output goes elsewhere.
        imports: modules that the target is likely to import: the fork server then does that once for all.
        deadline: when the job is ended, if that is known.
        in_job: this is part of a batch system's job, which says SIGTERM some time before it ends it.

    Raises:
        UsageError: when the machine cannot do what the options ask for.
    """
    nodes = options.nodes or (1, 1)
    if nodes[1] > 1 and options.rdzv is None:
        raise UsageError(
            f"--nodes {_range(nodes)} needs a place to meet: type --rdzv HOST[:PORT], one of the nodes, "
            "the same on each (within SLURM it is found by itself)"
        )
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
    return LaunchPlan(
        target=target,
        node=node,
        device=device,
        threads=threads,
        max_restarts=options.max_restarts,
        start_method="spawn" if options.start_method == "spawn" else "forkserver",
        preload=(*(imports if options.start_method == "forkserver" else ()), *options.preload),
        grace=options.grace,
        notices=tuple(signal.Signals[name] for name in _notices(options, in_job)),
        show=options.show,
        hang_timeout=options.hang_timeout,
        nodes=nodes,
        rdzv=parse_endpoint(options.rdzv) if options.rdzv is not None else None,
        node_rank=options.node_rank,
        run_id=options.run_id or _derived_run_id(target, options),
        join_timeout=options.join_timeout,
        deadline=deadline,
        log_dir=options.log_dir,
        workers=tuple(
            WorkerPlan(local_rank=rank, device=f"cuda:{rank}" if device == "cuda" else "cpu") for rank in range(nproc)
        ),
        env=_environment(device, threads, columns, _widest_label(node, nproc, nodes[1]))
        | (_own_threads(environ) if options.threads is None else {}),
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


def _widest_label(node: Node, nproc: int, most_nodes: int) -> int:
    """Columns that a line of the last rank loses to what stands before it."""
    return len(f"[{node.short_name}:{nproc * most_nodes - 1}] " if most_nodes > 1 else f"[{nproc - 1}] ")


def _environment(device: DeviceKind, threads: int, columns: int | None, label: int) -> dict[str, str]:
    env = {"MINETORCH_DEVICE": device, "OMP_NUM_THREADS": str(threads)}
    if device == "cpu":
        env |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    if columns is not None:
        env["MINETORCH_CONSOLE_COLUMNS"] = str(max(20, columns - label))
    return env


def _notices(options: LaunchOptions, in_job: bool) -> tuple[str, ...]:
    if options.notice_signals is not None:
        return options.notice_signals
    return ("SIGUSR2", "SIGTERM") if in_job else ("SIGUSR2",)


def _derived_run_id(target: Target, options: LaunchOptions) -> str:
    """The same on all nodes of one job, and another for another command: two jobs at one endpoint never merge."""
    return f"run-{zlib.crc32(f'{target} {options.nodes}'.encode()):08x}"


def _range(nodes: tuple[int, int]) -> str:
    return f"{nodes[0]}" if nodes[0] == nodes[1] else f"{nodes[0]}:{nodes[1]}"


def _seconds_text(hang_timeout: float | None) -> str:
    if hang_timeout is None:
        return "at least 300 s without a step, more where steps take long"
    return f"{hang_timeout:g} s without a step"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _at_least(option: str, value: float | None, least: int, instead: str) -> None:
    if value is not None and not value >= least:
        raise UsageError(f"{option} {value} is too small: type a number from {least} up, {instead}")


def _above_zero(option: str, value: float | None, meaning: str) -> None:
    if value is not None and not value > 0:
        raise UsageError(f"{option} {value:g} is too small: type a number above 0, {meaning}")


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{option} {value} is unknown: type {option} {'|'.join(allowed)}")
