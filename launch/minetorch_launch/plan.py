"""Decides a whole launch before anything is started: options + machine -> :class:`LaunchPlan`."""

from __future__ import annotations

import shlex
import signal
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from minetorch_launch.devices import HostInfo
from minetorch_launch.errors import UsageError, short_repr
from minetorch_launch.numa import Topology, bind_workers
from minetorch_launch.options import LaunchOptions
from minetorch_launch.target import Command, Target
from minetorch_launch.validators import Endpoint, parse_endpoint

DeviceKind = Literal["cpu", "cuda", "xpu"]
Stream = Literal["out", "err"]

_JOIN_SECONDS = 600.0


@dataclass(frozen=True)
class Deadline:
    """The end of a batch job, and when to warn the workers of it, in seconds of the Unix clock."""

    at: float
    margin: float
    """Seconds between the preemption warning and the end."""

    @property
    def warning_at(self) -> float:
        """When the workers get the preemption warning."""
        return self.at - self.margin


@dataclass(frozen=True)
class WorkerPlan:
    """One worker as planned."""

    local_rank: int
    device: str
    """``cpu``, or its GPU: ``cuda:N`` or ``xpu:N``."""

    cpus: frozenset[int] | None = None
    """CPUs that it is bound to; None: all that the launcher may use."""

    env: Mapping[str, str] = field(default_factory=dict)
    """Variables of this worker alone."""


@dataclass(frozen=True)
class LaunchPlan:
    """A launch with every choice made; carrying it out needs nothing else."""

    target: Target
    options: LaunchOptions
    """What the caller asked for; the fields below hold the choices that this left open."""

    host: HostInfo
    device: DeviceKind
    threads: int
    preload: tuple[str, ...]
    preempt_signals: tuple[signal.Signals, ...]
    nodes: tuple[int, int]
    rdzv_endpoint: Endpoint | None
    """Where the nodes meet; None on one node."""

    rdzv_id: str
    join_timeout: float
    local_addr: str | None
    """This node's own address, if the user has given one; on one node: where the workers' store listens, else the
    loopback address."""

    master_port: int | None
    """Port of the workers' store, if the user has given one: only on one node; None: any free one."""

    deadline: Deadline | None
    async_error_handling: str
    """TORCH_NCCL_ASYNC_ERROR_HANDLING of the workers: the user's, else 1 as with torchrun."""

    workers: tuple[WorkerPlan, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables that all workers share; :mod:`minetorch_launch.environment` adds those of the round."""

    @property
    def many_nodes(self) -> bool:
        """Whether this machine is one of several."""
        return self.nodes[1] > 1

    def log_file(self, rank: int) -> Path | None:
        """Where the lines of global rank ``rank`` are kept."""
        return self.options.log_dir / f"rank_{rank}.log" if self.options.log_dir else None

    def shows(self, local_rank: int, rank: int, stream: Stream) -> bool:
        """Whether a line of that worker appears on the console when it comes."""
        options = self.options
        if options.show == "failed" or (options.show == "0" and rank != 0):
            return False
        if options.local_ranks_filter is not None and local_rank not in options.local_ranks_filter:
            return False
        return _names(options.tee, local_rank, stream) or not _names(options.redirects, local_rank, stream)

    def has_prefix(self, world_size: int, is_terminal: bool) -> bool:
        """Whether the rank stands before each line, given whether stdout is a terminal."""
        prefix = self.options.prefix
        return prefix == "always" or (prefix == "auto" and (world_size > 1 or is_terminal))

    def text(self) -> str:
        """The plan for a person to read: what ``--dry-run`` prints."""
        return "\n".join(f"{name:<11} {value}" for name, value in _lines(self))


def make_plan(
    target: Target,
    options: LaunchOptions,
    host: HostInfo,
    environ: Mapping[str, str],
    *,
    columns: int | None = None,
    imports: tuple[str, ...] = (),
    deadline: Deadline | None = None,
    in_job: bool = False,
    topology: Topology | None = None,
) -> LaunchPlan:
    """Make every choice of a launch. Pure: touches neither the machine nor the environment.

    Args:
        target: what each worker runs.
        options: what the caller asked for.
        host: the machine, as found by :mod:`minetorch_launch.devices`.
        environ: the launcher's own environment.
        columns: width of the launcher's terminal; None if its output goes elsewhere.
        imports: modules that the target is likely to import: the fork server then imports them once for all.
        deadline: the end of the job, if that is known.
        in_job: this is part of a batch system's job, which sends SIGTERM some time before it ends the job.
        topology: of the CPUs; needed for ``numa_binding`` only.

    Raises:
        UsageError: when the machine cannot do what the options ask for.
    """
    if options.preload and isinstance(target, Command):
        raise UsageError(f"--preload is for Python, and {short_repr(target.program)} is another program: leave it out")
    device = _choose_device(options, host)
    nproc = _choose_nproc(options, host, device)
    threads = _choose_threads(options.threads, environ, host.cores, nproc)
    nodes, meeting, local_addr, master_port = _choose_endpoint(options)
    return LaunchPlan(
        target=target,
        options=options,
        host=host,
        device=device,
        threads=threads,
        preload=(*imports, *options.preload) if options.start_method == "forkserver" else (),
        preempt_signals=tuple(signal.Signals[name] for name in _preempt_signals(options, in_job)),
        nodes=nodes,
        rdzv_endpoint=meeting,
        rdzv_id=options.rdzv_id or _derived_id(target, options),
        join_timeout=_JOIN_SECONDS if options.join_timeout is None else options.join_timeout,
        local_addr=local_addr,
        master_port=master_port,
        deadline=deadline,
        async_error_handling=environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        workers=_plan_workers(options, host, device, nproc, environ, topology),
        env=_shared_environment(device, threads, columns, _widest_label(options, host, nproc, nodes[1]))
        | (_own_threads(environ) if options.threads is None else {}),
    )


def _choose_device(options: LaunchOptions, host: HostInfo) -> DeviceKind:
    wanted = options.device
    if wanted == "cpu" or (wanted == "auto" and not host.gpus):
        return "cpu"
    if not host.gpus or wanted not in ("auto", host.gpu_kind):
        reason = f"this machine has GPUs of kind {host.gpu_kind}" if host.gpus else host.no_gpu_reason
        raise UsageError(f"--device {wanted} needs a GPU of that kind, but {reason}: type --device cpu")
    return host.gpu_kind


def _choose_nproc(options: LaunchOptions, host: HostInfo, device: DeviceKind) -> int:
    if options.nproc is None:
        return len(host.gpus) if device != "cpu" else 1
    if options.nproc == "cores":
        return len(host.gpus) if device != "cpu" else host.cores
    if device != "cpu" and options.nproc > len(host.gpus):
        raise UsageError(
            f"--nproc {options.nproc} is more than the {_count(len(host.gpus), 'visible GPU')}: "
            f"type --nproc {len(host.gpus)}, or --device cpu for workers without GPUs"
        )
    return options.nproc


def _choose_threads(asked: int | None, environ: Mapping[str, str], cores: int, nproc: int) -> int:
    if asked is not None:
        return asked
    own = _own_threads(environ).get("OMP_NUM_THREADS")
    return int(own.split(",")[0]) if own else max(1, cores // nproc)


def _own_threads(environ: Mapping[str, str]) -> dict[str, str]:
    """The user's own setting. OpenMP allows a list, one number per nesting level; nonsense counts as unset."""
    own = environ.get("OMP_NUM_THREADS", "")
    first = own.split(",")[0].strip()
    return {"OMP_NUM_THREADS": own} if first.isdecimal() and len(first) < 10 and int(first) > 0 else {}


def _choose_endpoint(options: LaunchOptions) -> tuple[tuple[int, int], Endpoint | None, str | None, int | None]:
    """The number of nodes, where they meet, this node's address, and the port of the workers' store."""
    nodes = options.nodes or (1, 1)
    endpoint = parse_endpoint(options.rdzv_endpoint) if options.rdzv_endpoint is not None else None
    if nodes[1] == 1:
        if endpoint is None:
            return nodes, None, options.local_addr, None
        return nodes, None, options.local_addr or _unless_default(endpoint.host), endpoint.port or None
    if endpoint is None:
        raise UsageError(
            f"--nodes {_range(nodes)} needs a rendezvous: type --rdzv-endpoint HOST[:PORT], one of the nodes, "
            "the same on each (within SLURM it is found by itself)"
        )
    if endpoint.port == 0:
        raise UsageError(f"--rdzv-endpoint {endpoint}: {_range(nodes)} nodes cannot know a free port: type its number")
    return nodes, endpoint, options.local_addr, None


def _unless_default(host: str) -> str | None:
    return None if host in ("localhost", "127.0.0.1", "::1") else host


def _plan_workers(
    options: LaunchOptions,
    host: HostInfo,
    device: DeviceKind,
    nproc: int,
    environ: Mapping[str, str],
    topology: Topology | None,
) -> tuple[WorkerPlan, ...]:
    cpus: tuple[frozenset[int] | None, ...] = (None,) * nproc
    if options.numa_binding is not None and topology is not None:
        gpus = host.gpus if device != "cpu" else ()
        cpus = bind_workers(options.numa_binding, topology, nproc, [gpu.numa_node for gpu in gpus])
    return tuple(
        WorkerPlan(
            local_rank=rank,
            device=_device_name(device, 0 if options.virtual_local_rank else rank),
            cpus=cpus[rank],
            env=_one_gpu(device, rank, environ) if options.virtual_local_rank else {},
        )
        for rank in range(nproc)
    )


def _device_name(device: DeviceKind, index: int) -> str:
    return device if device == "cpu" else f"{device}:{index}"


_MASKS = {"cuda": "CUDA_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}


def _one_gpu(device: DeviceKind, local_rank: int, environ: Mapping[str, str]) -> dict[str, str]:
    if device == "cpu":
        return {}
    visible = environ.get(_MASKS[device])
    return {_MASKS[device]: visible.split(",")[local_rank].strip() if visible else str(local_rank)}


def _widest_label(options: LaunchOptions, host: HostInfo, nproc: int, max_nodes: int) -> int:
    """Columns that a line of the last rank loses to its prefix."""
    if options.prefix == "never":
        return 0
    return len(f"[{host.short_name}:{nproc * max_nodes - 1}] " if max_nodes > 1 else f"[{nproc - 1}] ")


def _shared_environment(device: DeviceKind, threads: int, columns: int | None, label: int) -> dict[str, str]:
    env = {"MINETORCH_DEVICE": device, "OMP_NUM_THREADS": str(threads)}
    if device == "cpu":
        env |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    if columns is not None:
        env["MINETORCH_CONSOLE_COLUMNS"] = str(max(20, columns - label))
    return env


def _preempt_signals(options: LaunchOptions, in_job: bool) -> tuple[str, ...]:
    if options.preempt_signals is not None:
        return options.preempt_signals
    return ("SIGUSR2", "SIGTERM") if in_job else ("SIGUSR2",)


def _derived_id(target: Target, options: LaunchOptions) -> str:
    """The same on all nodes of one job, and another for another command: two jobs at one endpoint never merge."""
    return f"run-{zlib.crc32(f'{target} {options.nodes}'.encode(errors='surrogateescape')):08x}"


def _names(streams: str, local_rank: int, stream: Stream) -> bool:
    """Whether torchrun's notation ``streams`` names that stream of that worker."""
    by_rank = dict(pair.split(":") for pair in streams.split(",")) if ":" in streams else None
    number = int(streams if by_rank is None else by_rank.get(str(local_rank), "0"))
    return bool(number & (1 if stream == "out" else 2))


def _lines(plan: LaunchPlan) -> list[tuple[str, object]]:
    host, options, world = plan.host, plan.options, len(plan.workers)
    start = "a fork server that imports " + ", ".join(("torch", *plan.preload))
    logs = options.log_dir / "rank_N.log" if options.log_dir else "console only"
    return [
        ("command", plan.target),
        ("host", f"{host.name} ({_count(host.cores, 'usable core')}, {_count(len(host.gpus), 'visible GPU')})"),
        ("workers", f"{world} on {plan.device}, {_count(plan.threads, 'thread')} each"),
        ("start", f"{options.start_method}: {start if options.start_method == 'forkserver' else 'fresh interpreters'}"),
        ("nodes", _nodes_text(plan)),
        ("restarts", f"at most {options.max_restarts}" + (" (always)" if options.restart_policy == "always" else "")),
        ("grace", f"{options.grace:g} s from the stop signal to SIGKILL"),
        ("preemption", ", ".join(signum.name for signum in plan.preempt_signals) or "no signals"),
        ("hang after", _hang_text(options.hang_timeout)),
        ("logs", f"{logs}; shown: {options.show}"),
        ("every rank", " ".join(f"{name}={shlex.quote(value)}" for name, value in plan.env.items())),
        *(_rank_line(plan, worker) for worker in plan.workers),
    ]


def _rank_line(plan: LaunchPlan, worker: WorkerPlan) -> tuple[str, str]:
    local, world = worker.local_rank, len(plan.workers)
    shown = 0 if plan.options.virtual_local_rank else local
    bound = f" cpus={_ranges(worker.cpus)}" if worker.cpus is not None else ""
    own = "".join(f" {name}={shlex.quote(value)}" for name, value in worker.env.items())
    rest = f"LOCAL_RANK={shown} LOCAL_WORLD_SIZE={world} device={worker.device}{bound}{own}"
    if plan.many_nodes:
        return f"rank *+{local}", rest
    return f"rank {local}", f"RANK={local} WORLD_SIZE={world} {rest}"


def _nodes_text(plan: LaunchPlan) -> str:
    if plan.rdzv_endpoint is None:
        return "this one" + (f", store at port {plan.master_port}" if plan.master_port else "")
    place = f"; this one is number {plan.options.node_rank}" if plan.options.node_rank is not None else ""
    return f"{_range(plan.nodes)}, rendezvous at {plan.rdzv_endpoint} as {plan.rdzv_id}{place}"


def _range(nodes: tuple[int, int]) -> str:
    return f"{nodes[0]}" if nodes[0] == nodes[1] else f"{nodes[0]}:{nodes[1]}"


def _ranges(cpus: frozenset[int]) -> str:
    """``0-2,4`` for 0, 1, 2 and 4."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][-1] == cpu - 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _hang_text(hang_timeout: float | None) -> str:
    if hang_timeout is None:
        return "at least 300 s without a step, more where steps take long"
    return f"{hang_timeout:g} s without a step"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
