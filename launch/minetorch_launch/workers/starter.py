"""Starts the worker group of a round: forked from the fork server, as fresh interpreters, or as any other program."""

from __future__ import annotations

import asyncio
import errno
import os
import pickle
import resource
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from minetorch_launch.environment import worker_environment
from minetorch_launch.errors import StartError
from minetorch_launch.hangs.shared_memory import SharedMemory
from minetorch_launch.output.relay import Relay
from minetorch_launch.plan import LaunchPlan
from minetorch_launch.processes.requests import memory_file
from minetorch_launch.processes.spawner import ForkServer, Process, Reaper, python_command
from minetorch_launch.rendezvous.endpoints import interface_of
from minetorch_launch.rendezvous.round import Round
from minetorch_launch.target import Command
from minetorch_launch.worker.main import Assignment
from minetorch_launch.worker.task import Task
from minetorch_launch.workers.group import WorkerGroup
from minetorch_launch.workers.worker import Worker

_DESCRIPTORS_OF_A_WORKER = 16
_FORK_SERVER_ENV = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""A preloaded module that asks whether there is a GPU must not start CUDA, which does not survive a fork."""


class WorkerStarter:
    """Starts worker groups, and stores.

    Args:
        signal_mask: the signals that the script begins with blocked.
        streams: stdout and stderr of the fork server.
        folder: for the error files of torch's ``record``.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        task: Task,
        *,
        signal_mask: Iterable[int],
        reaper: Reaper,
        relay: Relay,
        streams: tuple[int, int],
        folder: Path,
    ) -> None:
        self._plan, self._task = plan, task
        self._signal_mask = tuple(map(int, signal_mask))
        self._reaper, self._relay, self._streams, self._folder = reaper, relay, streams, folder
        self._fork_server: ForkServer | None = None
        self._stores: set[Process] = set()
        self._preparing = asyncio.Lock()
        self.address = "127.0.0.1"
        """This node's own, as the other nodes see it."""

        self.first_rank = 0
        """Global rank of this node's first worker."""

    async def prepare(self) -> None:
        """Start the fork server if there is to be one, again if it has died; it goes on importing by itself."""
        forks = self._plan.options.start_method == "forkserver" and not isinstance(self._plan.target, Command)
        async with self._preparing:
            if forks and (self._fork_server is None or not self._fork_server.is_alive):
                self._fork_server = await ForkServer.start(
                    self._reaper,
                    self._plan.preload,
                    import_root=self._plan.target.import_root,
                    env={**self._plan.env, **_FORK_SERVER_ENV},
                    streams=self._streams,
                )

    async def start_store(self) -> tuple[Process, socket.socket]:
        """Start a store process; returns it with the launcher's end of its socket.

        Raises:
            StartError: it cannot be started.
        """
        await self.prepare()
        ours, theirs = socket.socketpair()
        with theirs:
            if self._fork_server is not None:
                await self._fork_server.ready()
                process = await self._fork_server.fork({"op": "store"}, [theirs.fileno()])
            else:
                code = "from minetorch_launch.processes.store_process import main; main(3)"
                with open(os.devnull, "rb") as null:
                    fds = [null.fileno(), *self._streams, theirs.fileno()]
                    process = await self._reaper.run(python_command(code), fds)
        self._stores = {store for store in self._stores if store.exit_code is None} | {process}
        return process, ours

    async def start(self, round_: Round, last_failure: tuple[int, float] | None) -> WorkerGroup:
        """Start the workers of a round, which is told the step and the time of the last failure.

        Raises:
            StartError: they cannot be started.
        """
        await self.prepare()
        if self._fork_server is not None:
            await self._fork_server.ready()
        group = WorkerGroup(self._plan, self._relay.say)
        self.first_rank = round_.ranks.start
        self._relay.begin(round_.ranks)
        # What is in the fork server's environment for its own sake must not reach the script.
        shared_env = {name: os.environ.get(name) for name in _FORK_SERVER_ENV} | _gloo_interface(self.address)
        try:
            started = await asyncio.gather(
                *(self._start_one(group, round_, rank, last_failure, shared_env) for rank in round_.ranks),
                return_exceptions=True,
            )
        except asyncio.CancelledError:
            await self.end_descendants()
            raise
        for failure in started:
            if isinstance(failure, BaseException):
                await self.end_descendants()
                raise _start_error(failure, len(round_.ranks))
        return group

    async def _start_one(
        self,
        group: WorkerGroup,
        round_: Round,
        rank: int,
        last_failure: tuple[int, float] | None,
        shared_env: Mapping[str, str | None],
    ) -> None:
        local_rank = rank - round_.ranks.start
        error_file = self._folder / str(round_.number) / str(local_rank) / "error.json"
        error_file.parent.mkdir(parents=True)
        env = {**shared_env, **worker_environment(self._plan, round_, local_rank, str(error_file), last_failure)}
        line = f"minetorch-launch: {time.strftime('%F %T')} {self._plan.target} as rank {rank} of {round_.world_size}"
        self._relay.log(rank, line)  # a log file may hold many starts
        with ExitStack() as stack:
            out, out_write = self._pipe(stack)
            err, err_write = self._pipe(stack)
            ours, theirs = socket.socketpair()
            stack.enter_context(theirs)
            memory = SharedMemory.make()
            result = os.memfd_create("minetorch-result", os.MFD_CLOEXEC)
            stdin = self._stdin(stack, round_.world_size)
            self._relay.attach(rank, "out", out)
            self._relay.attach(rank, "err", err)
            is_command = isinstance(self._plan.target, Command)
            worker = Worker(rank, local_rank, link=ours, memory=memory, result=result, on_change=group.note_change)
            fds = [stdin, out_write, err_write, theirs.fileno(), *memory.fds, result]
            cpus = self._plan.workers[local_rank].cpus
            assignment = Assignment(self._task, env, self._signal_mask, cpus, str(self._folder))
            if is_command:
                process = await self._run_command(fds[:3], env, cpus)
            else:
                task = stack.enter_context(memory_file(pickle.dumps(assignment)))
                process = await self._run_python([*fds, task.fileno()])
        worker.process = process
        process.on_end = group.note_change
        group.workers.append(worker)
        group.workers.sort(key=lambda each: each.rank)

    def _pipe(self, stack: ExitStack) -> tuple[int, int]:
        read, write = os.pipe()
        stack.callback(os.close, write)
        return read, write

    def _stdin(self, stack: ExitStack, world_size: int) -> int:
        """The launcher's stdin goes to a worker that is alone; several would take each other's lines."""
        if world_size == 1 and sys.stdin is not None:  # None: it is closed
            return 0
        return stack.enter_context(open(os.devnull, "rb")).fileno()

    async def _run_python(self, fds: list[int]) -> Process:
        if self._fork_server is not None:
            return await self._fork_server.fork({"op": "worker"}, fds)
        return await self._reaper.run(python_command("from minetorch_launch.worker.main import main; main()"), fds)

    async def _run_command(self, fds: list[int], env: dict[str, str | None], cpus: frozenset[int] | None) -> Process:
        target = self._plan.target
        assert isinstance(target, Command)
        try:
            return await self._reaper.run([target.program, *target.args], fds, env=env, cpus=cpus)
        except StartError as error:
            raise StartError(
                f"cannot start {target.program!r} ({error}): give the path of an executable file"
            ) from None

    async def end_descendants(self) -> None:
        """Kill what the workers have left running, daemons included."""
        keep = [store.pid for store in self._stores]
        if self._fork_server is not None and self._fork_server.is_alive:
            keep.append(self._fork_server.process.pid)
        await self._reaper.kill_descendants(keep=keep)


def _start_error(failure: BaseException, workers: int) -> BaseException:
    if not isinstance(failure, OSError) or failure.errno != errno.EMFILE:
        return failure
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return StartError(
        f"{workers} workers need some {_DESCRIPTORS_OF_A_WORKER * workers} open files, and the launcher may have "
        f"{limit}: raise the limit (ulimit -n, LimitNOFILE=), or start fewer workers"
    )


def _gloo_interface(address: str) -> dict[str, str | None]:
    """Else gloo goes by the host's name, which may be unknown, or 127.0.1.1 (Debian), or open to the world."""
    interface = interface_of(address)
    return {} if interface is None or "GLOO_SOCKET_IFNAME" in os.environ else {"GLOO_SOCKET_IFNAME": interface}
