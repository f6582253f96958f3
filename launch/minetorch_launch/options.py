"""What the caller of a launch asks for. Every value is checked at construction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minetorch_launch import validators
from minetorch_launch.errors import UsageError
from minetorch_launch.numa import MODES as NUMA_MODES

DEVICES = ("auto", "cpu", "cuda", "xpu")
START_METHODS = ("forkserver", "spawn")
SHOWS = ("all", "0", "failed")
PREFIXES = ("auto", "always", "never")
RESTART_POLICIES = ("auto", "always")

PREEMPT_SIGNALS = (
    "SIGUSR1",
    "SIGUSR2",
    "SIGTERM",
    "SIGHUP",
    "SIGINT",
    "SIGCONT",
    "SIGALRM",
    "SIGXCPU",
    "SIGPWR",
)
"""Signals that the launcher can pass on; the others have a meaning of their own for it or for Python."""

_MAX_WORKERS = 10_000


@dataclass(frozen=True)
class LaunchOptions:
    """What the caller asks for.

    Raises:
        UsageError: at construction, for a value that can never work.
    """

    nproc: int | Literal["cores"] | None = None
    """Workers on this machine; None: one for each visible GPU, or a single one without GPUs; ``cores``: one for each
    visible GPU, or one for each usable core without GPUs, which is torchrun's ``auto``."""

    device: str = "auto"
    """The device of the workers: ``auto`` (GPUs if there are any), ``cpu``, ``cuda`` (ROCm too) or ``xpu``."""

    max_restarts: int = 0
    """How many failures restart all workers before a failure ends the launch."""

    restart_policy: str = "auto"
    """``auto``: restart if that can help (the failure report says why not). ``always``: restart after every failure."""

    log_dir: Path | None = None
    """Folder for ``rank_N.log`` (both streams of one worker) and, after a failure, ``failure.json``."""

    threads: int | None = None
    """OMP_NUM_THREADS of each worker; None: the user's own setting, else an equal share of the usable cores."""

    start_method: str = "forkserver"
    """``forkserver``: fork workers from a process that has imported torch once. ``spawn``: fresh interpreters."""

    preload: tuple[str, ...] = ()
    """Modules that the fork server imports before it forks, beside torch and what torch needs to train."""

    grace: float = 30.0
    """Seconds between the signal that stops a worker and SIGKILL."""

    preempt_signals: tuple[str, ...] | None = None
    """Signals to the launcher that warn the workers of a preemption, without ending the launch; None: SIGUSR2, and
    SIGTERM within SLURM. A worker that would die of such a signal gets it only where it is a stop signal."""

    preempt_before: float | None = None
    """Seconds between the preemption warning and the end of a SLURM job; None: 120, at most a tenth of the job."""

    show: str = "all"
    """The lines that appear on the console: ``all``, ``0`` (those of rank 0) or ``failed`` (a failed rank's last)."""

    prefix: str = "auto"
    """Whether the rank stands before each line: ``always``, ``never``, or ``auto``: yes, unless there is one worker in
    the whole job and stdout is not a terminal."""

    hang_timeout: float | None = None
    """Seconds without a step of any worker that make a hang; None: derived from the steps seen, at least 300."""

    nodes: tuple[int, int] | None = None
    """The minimum and the maximum of machines in this job; None: this one, or all of a SLURM job's. With fewer than
    the maximum the job runs on the machines that it has."""

    rdzv_endpoint: str | None = None
    """``HOST[:PORT]`` of one of the nodes, the same for all: there they meet. On one node: where the workers' store
    listens; port 0 is any free one."""

    rdzv_id: str | None = None
    """The name that the launchers of this job share, and no other's; None: derived from the command."""

    node_rank: int | None = None
    """This machine's place in the order of ranks; None: the rendezvous host first, then by host name."""

    join_timeout: float | None = None
    """Seconds to wait for the minimum of machines, at the start and after one is lost; None: 600, or 60 where a SLURM
    job's launchers are all started at once."""

    last_call_timeout: float = 10.0
    """Seconds without another arrival after which the first round begins with fewer than the maximum of machines."""

    local_addr: str | None = None
    """The address at which the other nodes reach this one; None: the one that leads to the endpoint."""

    role: str = "default"
    """ROLE_NAME of the workers."""

    redirects: str = "0"
    """Streams that are written to the log file only, in torchrun's notation: ``3`` for both of every worker, or by
    local rank: ``0:1,1:2``."""

    tee: str = "0"
    """Streams that appear on the console although ``redirects`` names them, in the same notation."""

    local_ranks_filter: tuple[int, ...] | None = None
    """Local ranks whose lines appear on the console; None: all."""

    numa_binding: str | None = None
    """Which CPUs a worker may use: those of its GPU's NUMA ``node`` or ``socket``, an ``exclusive`` share of the
    node's cores, or one ``core-complex``; None: all."""

    virtual_local_rank: bool = False
    """Each worker sees its own GPU only, as ``cuda:0``, and finds LOCAL_RANK=0."""

    def __post_init__(self) -> None:
        if self.nproc != "cores":
            hint = "or auto, for one worker per visible GPU"
            validators.check_whole_number("--nproc", self.nproc, 1, hint, maximum=_MAX_WORKERS)
        hint = "or leave it out to share the usable cores"
        validators.check_whole_number("--threads", self.threads, 1, hint, maximum=_MAX_WORKERS)
        hint = "0 ends the launch at the first failure"
        validators.check_whole_number("--max-restarts", self.max_restarts, 0, hint, optional=False)
        validators.check_whole_number("--node-rank", self.node_rank, 0, "this node's place in the order of ranks")
        self._check_seconds()
        validators.check_choice("--device", self.device, DEVICES)
        validators.check_choice("--start-method", self.start_method, START_METHODS)
        validators.check_choice("--restart-policy", self.restart_policy, RESTART_POLICIES)
        validators.check_choice("--show", self.show, SHOWS)
        validators.check_choice("--prefix", self.prefix, PREFIXES)
        validators.check_path("--log-dir", self.log_dir)
        role = self.role or None  # TorchX gives its workers an empty one
        for option, name in (("--rdzv-id", self.rdzv_id), ("--local-addr", self.local_addr), ("--role", role)):
            validators.check_name(option, name)
        validators.check_names("--preload", self.preload)
        validators.check_names("--preempt-signals", self.preempt_signals or ())
        for name in self.preempt_signals or ():
            validators.check_choice("--preempt-signals", name, PREEMPT_SIGNALS)
        if self.numa_binding is not None:
            validators.check_choice("--numa-binding", self.numa_binding, NUMA_MODES)
        self._check_streams()
        self._check_nodes()
        if self.preload and self.start_method == "spawn":
            raise UsageError("--preload is for the fork server, and --start-method spawn has none: drop one of the two")

    def _check_seconds(self) -> None:
        check = validators.check_seconds
        check("--last-call-timeout", self.last_call_timeout, "the seconds to wait for more", optional=False)
        check("--grace", self.grace, "the seconds a worker has to end by itself", optional=False)
        check("--preempt-before", self.preempt_before, "the seconds before the end of the job")
        hang = "the seconds without a step that make a hang"
        check("--hang-timeout", self.hang_timeout, hang, above_zero=True, may_be_infinite=True)
        check("--join-timeout", self.join_timeout, "the seconds to wait for the nodes", above_zero=True)

    def _check_streams(self) -> None:
        validators.check_streams("--redirects", self.redirects)
        validators.check_streams("--tee", self.tee)
        ranks = self.local_ranks_filter
        if ranks is not None and (not isinstance(ranks, tuple) or not ranks):
            raise UsageError("--local-ranks-filter takes whole numbers: type e.g. --local-ranks-filter 0,1")
        for rank in ranks or ():
            validators.check_whole_number("--local-ranks-filter", rank, 0, "a local rank", optional=False)
        if self.redirects != "0" and self.log_dir is None:
            raise UsageError("--redirects takes lines off the console: add --log-dir DIR, the folder to keep them in")

    def _check_nodes(self) -> None:
        validators.check_node_range("--nodes", self.nodes)
        validators.check_name("--rdzv-endpoint", self.rdzv_endpoint)
        maximum = self.nodes[1] if self.nodes is not None else None
        if maximum is not None and self.node_rank is not None and self.node_rank >= maximum:
            raise UsageError(
                f"--node-rank {self.node_rank} is not one of {maximum} nodes: "
                + (f"type 0 to {maximum - 1}" if maximum > 1 else "type 0, or --nodes N for more nodes")
            )
        if self.rdzv_endpoint is not None:
            validators.parse_endpoint(self.rdzv_endpoint)
