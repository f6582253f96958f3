"""A worker's place among all workers of a run: its rank, its device, and the collectives.

A world is read from the environment of `minetorch-launch` or `torchrun`, or from SLURM's job step
(`srun python train.py`). Without these it has one worker. Reading has no effects; `connect` joins the other workers.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeVar, overload

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from minetorch.distributed.gloo_threads import let_threads_finish
from minetorch.errors import CollectiveError, ConfigurationError, RemoteError, in_brief

T = TypeVar("T")

ReduceOp = Literal["mean", "sum", "min", "max"]

REDUCE_OPS: dict[str, dist.ReduceOp.RedOpType] = {
    "mean": dist.ReduceOp.SUM,
    "sum": dist.ReduceOp.SUM,
    "min": dist.ReduceOp.MIN,
    "max": dist.ReduceOp.MAX,
}

LATE_S = 10.0
"""Seconds after which the first worker of each node logs that it waits. The other workers log it after `_AGAIN_S`."""

_AGAIN_S = 60.0

_MOST_DIGITS = 18


@dataclass(frozen=True)
class World:
    """One worker's place among all workers of a run."""

    rank: int = 0
    """Global rank, from 0 to size - 1."""
    size: int = 1
    """Number of workers on all nodes."""
    local_rank: int = 0
    """Rank among the workers of this node; also the index of this worker's GPU."""
    local_size: int = 1
    """Number of workers on this node."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """The device of this worker."""
    rendezvous: Mapping[str, str] = field(default_factory=dict)
    """Variables that torch.distributed needs and the environment lacks, from those of SLURM."""
    source: str = ""
    """A sentence for messages: where the number of workers comes from, and how to run a single worker."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> World:
        """Read the world from `environ`. It starts nothing.

        Raises:
            ConfigurationError: a variable is missing or invalid, or there are more workers than GPUs.
        """
        variables = None if _is_rank_of_step(environ) else _from_torchrun(environ)
        source = _source(environ, is_step=variables is None)
        variables = variables or _from_slurm(environ) or {}
        rank = _integer(variables, "RANK", 0)
        size = _integer(variables, "WORLD_SIZE", 1)
        local_rank = _integer(variables, "LOCAL_RANK", rank)
        local_size = _integer(variables, "LOCAL_WORLD_SIZE", size)
        if not 0 <= rank < size:
            raise ConfigurationError(f"RANK={rank} and WORLD_SIZE={size} do not fit: RANK must be 0 to {size - 1}.")
        if {"LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= environ.keys() and not local_rank < local_size:
            raise ConfigurationError(
                f"LOCAL_RANK={local_rank} and LOCAL_WORLD_SIZE={local_size} do not fit: LOCAL_RANK must be 0 to "
                f"{local_size - 1}."
            )
        if size > 1 and not 0 < _integer(variables, "MASTER_PORT", 1) < 65536:
            raise ConfigurationError(f"MASTER_PORT={variables['MASTER_PORT']} is no port: it must be 1 to 65535.")
        device = _device(environ.get("MINETORCH_DEVICE", "auto"), local_rank)
        added = {name: value for name, value in variables.items() if name not in environ}
        return cls(rank, size, local_rank, local_size, device, added, source if size > 1 else "")

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0. Only rank 0 draws and writes checkpoints."""
        return self.rank == 0

    @property
    def device_name(self) -> str:
        """The kind of this worker's device: "cpu", "NVIDIA H100 80GB HBM3"."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def connect(self, timeout: timedelta | None = None, say: Callable[[str], object] = lambda line: None) -> None:
        """Join the other workers. Returns when all have joined. A single worker joins nobody.

        If there is a process group already, it is checked and used.

        Args:
            timeout: the timeout of this call and of every collective; None: torch's default (30 minutes for gloo).
            say: logs a line after `LATE_S` seconds of waiting, and then every minute.

        Raises:
            ConfigurationError: there is already a process group, and it has another size than this world, or cannot
                exchange tensors on the CPU and on this worker's device.
        """
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.size == 1:
            return
        if dist.is_initialized():
            if dist.get_world_size() != self.size:
                raise ConfigurationError(
                    f"The process group has {dist.get_world_size()} members, but WORLD_SIZE={self.size}. "
                    "Let the Trainer make the group, or make it of all workers."
                )
            self._check_group(dist.get_backend_config())
            return
        os.environ.update(self.rendezvous)
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        with _said_if_late(
            say, f"Rank {self.rank} of {self.size} waits for other ranks at {place}. {self.source}", self
        ):
            dist.init_process_group(backend, timeout=timeout)
        atexit.register(_leave, self.device.type)

    def _check_group(self, config: str) -> None:
        """Refuse the script's own process group if it lacks a backend for a device, before a collective fails.

        Args:
            config: the group's backends, as in "cpu:gloo,cuda:nccl".
        """
        known = dict(part.split(":") for part in config.split(",") if ":" in part)
        missing = [kind for kind in ("cpu", self.device.type) if kind not in known]
        if missing:
            raise ConfigurationError(
                f"The script's process group ({config}) has no backend for {missing[0]}, and the Trainer exchanges "
                "tensors there, too. Make it with init_process_group('cpu:gloo,cuda:nccl'), or let the Trainer make it."
            )

    @overload
    def reduce(self, value: torch.Tensor, op: ReduceOp = "mean") -> torch.Tensor: ...
    @overload
    def reduce(self, value: float, op: ReduceOp = "mean") -> float: ...
    def reduce(self, value: torch.Tensor | float, op: ReduceOp = "mean") -> torch.Tensor | float:
        """Combine one value of each rank; every rank gets the result.

        Args:
            value: a number, or a tensor with the same shape on every rank. It does not change.
            op: "mean", "sum", "min" or "max", over the ranks.

        Raises:
            ConfigurationError: `op` is not one of these.
            CollectiveError: only rank 0 runs here.
        """
        if op not in REDUCE_OPS:
            raise ConfigurationError(f"reduce knows {', '.join(map(repr, REDUCE_OPS))}; {op!r} was given.")
        if isinstance(value, torch.Tensor):
            return self._reduce_tensor(value.detach(), op)
        return float(self._reduce_tensor(torch.tensor(float(value), dtype=torch.float64), op))

    def _reduce_tensor(self, value: torch.Tensor, op: ReduceOp) -> torch.Tensor:
        if self.size == 1:
            return value.clone()
        result = value.to(torch.float64) if op == "mean" and not value.is_floating_point() else value.clone()
        dist.all_reduce(result, REDUCE_OPS[op])
        return result / self.size if op == "mean" else result

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank. The value is any picklable object."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's value in rank order, on every rank. Any picklable object."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every rank has called it."""
        if self.size > 1:
            dist.barrier()

    def on_main(self, action: Callable[[], T]) -> T:
        """Run `action` on rank 0 and return its result on every rank.

        If `action` fails, no rank waits for the failed one: rank 0 raises the error, and the others `RemoteError`.
        """
        if self.size == 1:
            return action()
        outcome: tuple[T | None, str | None] = (None, None)
        failure: Exception | None = None
        if self.is_main:
            try:
                outcome = (action(), None)
            except Exception as error:
                failure = error
                outcome = (None, f"{type(error).__name__}: {error}")
        result, reason = self.broadcast(outcome)
        if failure is not None:
            raise failure
        if reason is not None:
            raise RemoteError(f"Rank 0 failed, so rank {self.rank} stops too: {reason}")
        return result  # type: ignore[return-value]

    def on_all(self, action: Callable[[], T]) -> list[T]:
        """Run `action` on every rank, and return all results in rank order, on every rank.

        If `action` fails on a rank, no rank waits for it: that rank raises the error, and the others `RemoteError`.
        """
        outcome: tuple[T | None, str | None] = (None, None)
        failure: Exception | None = None
        try:
            outcome = (action(), None)
        except Exception as error:
            if self.size == 1:
                raise
            failure = error
            outcome = (None, f"{type(error).__name__}: {error}")
        results, reasons = zip(*self.gather(outcome), strict=True)
        if failure is not None:
            raise failure
        for rank, reason in enumerate(reasons):
            if reason is not None:
                raise RemoteError(f"Rank {rank} failed, so rank {self.rank} stops too: {reason}")
        return list(results)

    def alone(self, where: str) -> AbstractContextManager[Any]:
        """A context in which a collective raises an error, for code that only one rank runs.

        Args:
            where: a name of the code for the error, as in "hook 'after_epoch_end'".
        """
        return _NoCollectives(where) if self.size > 1 else nullcontext()


class SideGroup:
    """A second group of all ranks. Its collectives are separate from those of training, and have their own timeout."""

    def __init__(self, world: World, timeout: timedelta) -> None:
        """Make the group after `World.connect`. Every rank calls it."""
        self._world = world
        self._timeout = timeout
        self._group = dist.new_group(backend="gloo", timeout=timeout)

    def gather(self, value: T) -> list[T]:
        """Every rank's value in rank order, on every rank. Any picklable object.

        Raises:
            TimeoutError: a rank did not call it in time.
        """
        values: list[Any] = [None] * self._world.size
        began = time.monotonic()
        try:
            dist.all_gather_object(values, value, group=self._group)
        except RuntimeError as error:
            if time.monotonic() - began < self._timeout.total_seconds():
                raise
            raise TimeoutError(str(error)) from error
        return values

    def close(self) -> None:
        """Leave the group without waiting for the other ranks."""
        let_threads_finish()
        if dist.is_initialized():
            dist.destroy_process_group(self._group)


class _NoCollectives(TorchDispatchMode):
    """Raises an error for a collective that would wait for the other ranks for ever.

    All collectives of torch.distributed pass through torch's dispatcher as operators of the namespace `c10d`,
    whether the Trainer, the user or DDP calls them.
    """

    def __init__(self, where: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.where = where

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            raise CollectiveError(
                f"{self.where} runs on rank 0 only (@minetorch.main_only), but calls the collective "
                f"'{func.__name__.split('.')[0].rstrip('_')}', which waits for every rank: it would wait for ever. "
                "Remove @minetorch.main_only, or move the collective out of it."
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def _said_if_late(say: Callable[[str], object], line: str, world: World) -> Iterator[None]:
    """Log the line if the block takes long, and again every minute."""
    done = threading.Event()

    def watch() -> None:
        wait_s = LATE_S if world.local_rank == 0 else _AGAIN_S
        while not done.wait(wait_s):
            say(line)
            wait_s = _AGAIN_S

    thread = threading.Thread(target=watch, name="minetorch-late", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _leave(device_type: str) -> None:
    """Destroy the process group before Python finalizes.

    With NCCL this can wait for the other ranks, so it does not happen after a failure.
    """
    let_threads_finish()
    failed = getattr(sys, "last_value", None) is not None
    if dist.is_initialized() and not (failed and device_type == "cuda"):
        dist.destroy_process_group()


def _is_step(environ: Mapping[str, str]) -> bool:
    """Whether this process is a task of an `srun` step. A batch script has no step."""
    return "SLURM_STEP_ID" in environ and "SLURM_STEP_NUM_TASKS" in environ


def _is_rank_of_step(environ: Mapping[str, str]) -> bool:
    """Whether the rank comes from the `srun` step, though the script sets WORLD_SIZE and MASTER_ADDR."""
    return (
        "RANK" not in environ
        and _is_step(environ)
        and environ.get("WORLD_SIZE") in (None, environ["SLURM_STEP_NUM_TASKS"])
    )


def _source(environ: Mapping[str, str], *, is_step: bool) -> str:
    if is_step and _is_step(environ):
        step = f"{environ.get('SLURM_JOB_ID', '?')}.{environ['SLURM_STEP_ID']}"
        return (
            f"The number comes from SLURM_STEP_NUM_TASKS={environ['SLURM_STEP_NUM_TASKS']} of the step {step}. If this "
            "is an interactive shell, unset SLURM_STEP_ID and WORLD_SIZE to run one worker."
        )
    size = environ.get("WORLD_SIZE", "")
    if "TORCHELASTIC_RUN_ID" in environ:
        return f"The number comes from WORLD_SIZE={size}, which the launcher sets."
    return (
        f"The number comes from WORLD_SIZE={size}. If nothing starts the others, use `minetorch-launch`, or unset RANK "
        "and WORLD_SIZE to run one worker."
    )


def _from_torchrun(environ: Mapping[str, str]) -> dict[str, str] | None:
    if "WORLD_SIZE" not in environ and "RANK" not in environ:
        return None
    names = ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    missing = [name for name in names if not environ.get(name)]
    if environ.get("WORLD_SIZE") == "1":
        missing = [name for name in missing if name == "RANK"]
    if missing:
        given = [name for name in names if name in environ]
        if _is_step(environ):
            raise ConfigurationError(
                f"The environment has {', '.join(given)}, but not {', '.join(missing)}; this SLURM step has "
                f"{environ['SLURM_STEP_NUM_TASKS']} tasks. Unset {', '.join(given)}: `srun python train.py` takes all "
                "of them from the step."
            )
        raise ConfigurationError(
            f"The environment has {', '.join(given)}, but not {', '.join(missing)}. To run one worker, unset "
            f"{', '.join(given)}. To run several, start the script with `minetorch-launch` or `torchrun`, which set "
            "all of them."
        )
    names += ["LOCAL_RANK", "LOCAL_WORLD_SIZE"]
    return {name: environ[name] for name in names if name in environ}


def _from_slurm(environ: Mapping[str, str]) -> dict[str, str] | None:
    """The place of a task of an `srun` step."""
    if not _is_step(environ) or _integer(environ, "SLURM_STEP_NUM_TASKS", 1) == 1:
        return None
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    job = _integer(environ, "SLURM_JOB_ID", 0)
    step = _integer(environ, "SLURM_STEP_ID", 0)
    return {
        "RANK": environ.get("SLURM_PROCID", ""),
        "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environ.get("SLURM_LOCALID", ""),
        "LOCAL_WORLD_SIZE": environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(",")[0].split("(")[0],
        "MASTER_ADDR": environ.get("MASTER_ADDR") or first_host(nodes),
        # Below Linux's ephemeral ports (from 32768), and different for each job step.
        "MASTER_PORT": environ.get("MASTER_PORT") or str(15000 + (job * 31 + step) % 15000),
    }


def first_host(nodelist: str) -> str:
    """The first host of a SLURM node list: `n[003-007,9],m1` gives `n003`.

    Raises:
        ConfigurationError: `nodelist` names no host.
    """
    match = re.match(r"([^\[\],\s]+)(?:\[([0-9]+)[^\]]*\]([^\[\],\s]*))?", nodelist)
    if match is None:
        raise ConfigurationError(
            f"SLURM's node list names no host: {in_brief(nodelist)}. Set MASTER_ADDR to rank 0's host."
        )
    prefix, number, suffix = match.groups(default="")
    return f"{prefix}{number}{suffix}"


def _integer(variables: Mapping[str, str], name: str, default: int) -> int:
    text = variables.get(name)
    if text is None:
        return default
    if not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise ConfigurationError(f"{name}={in_brief(text)} must be a whole number, 0 or more.")
    return int(text)


def _device(kind: str, local_rank: int) -> torch.device:
    if kind not in ("auto", "cpu", "cuda"):
        raise ConfigurationError(f"MINETORCH_DEVICE={in_brief(kind)} must be 'auto', 'cpu' or 'cuda'.")
    if kind == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if local_rank >= count:
            raise ConfigurationError(
                f"Worker {local_rank} of this node has no GPU of its own: {count} are visible. Start at most "
                f"{count} workers a node, or set MINETORCH_DEVICE=cpu (`minetorch-launch --device cpu`)."
            )
        return torch.device("cuda", local_rank)
    if kind == "cuda":
        raise ConfigurationError(
            "MINETORCH_DEVICE=cuda, but torch sees no GPU. Unset it, or install a CUDA build of torch."
        )
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
