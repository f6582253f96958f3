"""Runs the workers of a plan on torch.distributed.elastic: the only file that imports it, or torch.

Torch's agent decides when to start, to restart and to give up; its c10d rendezvous brings nodes together.
Two of its parts are changed, both through its own classes:

- :class:`_Workers` stands in for its view of the worker processes. Torch's own waits for ever on a worker
  that ends well without returning (``os._exit(0)``), gives a stop 30 fixed seconds, and reports the rank that
  it happens to notice first.
- :class:`_FreshStore` gives every attempt a store of its own. Torch hands the same one to each, in which
  restarted workers find the addresses of their dead forerunners: gloo then fails with 3 workers and more.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import contextmanager, suppress
from multiprocessing import connection
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch.distributed.elastic.rendezvous.dynamic_rendezvous as dynamic_rendezvous
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs, RunProcsResult, SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from minetorch_launch import forkserver, worker
from minetorch_launch.errors import StartError, StoppedError
from minetorch_launch.report import FailureReport, WorkerEnd, make_report, tidy_crash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.process import BaseProcess

    from minetorch_launch.channel import Channel
    from minetorch_launch.guard import Guard
    from minetorch_launch.plan import LaunchPlan
    from minetorch_launch.stopping import Stop

__all__ = ["Engine"]

_POLL_SECONDS = 0.1
_PATIENCE_SECONDS = 1.0
_DYING_SECONDS = 0.5

# The agent's events go nowhere, but naming their caller walks the stack through inspect.getmodule, which
# touches every loaded module and so makes torch import its lazy ones: 1.2 s between a failure and a restart.
dynamic_rendezvous.get_method_name = lambda depth=2: "rendezvous"


class Engine:
    """Carries out one plan on this machine.

    Attributes:
        failure: the report of the last attempt that failed.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        task: worker.Task,
        *,
        channel: Channel,
        guard: Guard,
        stop: Stop,
        say: Callable[[str], None],
        on_restart: Callable[[FailureReport, int], None],
    ) -> None:
        self.plan, self.channel, self.guard, self.stop, self.say = plan, channel, guard, stop, say
        self.on_restart = on_restart
        self.failure: FailureReport | None = None
        self._task = task

    def run(self) -> FailureReport | None:
        """Start the workers and see them through to the end, restarts included.

        Returns:
            None if all of them ended with exit code 0.

        Raises:
            StoppedError: on a stop signal, after the workers are gone.
            StartError: if no worker could be started.
        """
        handler = _FreshStore(
            get_rendezvous_handler(
                RendezvousParameters(
                    backend="c10d",
                    endpoint="127.0.0.1:0",  # the system picks a port that no other launch has
                    run_id=uuid4().hex,
                    min_nodes=1,
                    max_nodes=1,
                    local_addr="127.0.0.1",
                    is_host=True,
                )
            )
        )
        spec = WorkerSpec(
            role="default",
            local_world_size=len(self.plan.workers),
            entrypoint=worker.run,
            args=(self._task,),
            rdzv_handler=handler,
            max_restarts=self.plan.max_restarts,
            monitor_interval=0.001,  # _Workers.wait does the waiting
            local_addr="127.0.0.1",
        )
        with _quiet_torch():
            try:
                result = _Agent(spec, self).run()
            except SignalException as error:
                raise StoppedError(int(error.sigval)) from None
            except EOFError:
                raise StartError(
                    "the fork server ended before it could start the workers: see its own words above, "
                    "and try without --preload or with --start-method spawn"
                ) from None
            finally:
                handler.shutdown()
        return self.failure if result.is_failed() else None


class _Agent(LocalElasticAgent):
    """Torch's agent, with our view of the workers, and a word to the user before each restart."""

    def __init__(self, spec: WorkerSpec, engine: Engine) -> None:
        super().__init__(spec, _NoLogs(), start_method=engine.plan.start_method)
        self._engine = engine
        self._workers: _Workers | None = None

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        engine, plan = self._engine, self._engine.plan
        attempt = plan.max_restarts - self._remaining_restarts
        engine.channel.begin_attempt(attempt)
        if plan.start_method == "forkserver":
            forkserver.keep_running(engine.guard)
        with forkserver.signals_blocked():
            ids: dict[int, Any] = super()._start_workers(worker_group)
            engine.stop.hold()
        self._workers = _Workers(self._pcontext, engine, attempt)
        self._pcontext = self._workers  # type: ignore[assignment]
        return ids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED and self._workers is not None:
            self._engine.failure = self._workers.report()
            if self._remaining_restarts > 0 and self._engine.failure is not None:
                used = self._worker_group.spec.max_restarts - self._remaining_restarts
                self._engine.on_restart(self._engine.failure, used + 1)
        return result


class _Workers:
    """The worker processes of one attempt: what torch's agent sees of them."""

    def __init__(self, started: Any, engine: Engine, attempt: int) -> None:
        self._engine, self._attempt = engine, attempt
        self._started = started  # its locks and queues must last until the workers have opened theirs
        self._processes: list[BaseProcess] = started._pc.processes
        self._told: dict[int, tuple[float, set[int]]] = {}
        self._ended = False

    def pids(self) -> dict[int, int]:
        """Process ids by local rank."""
        return {rank: process.pid or 0 for rank, process in enumerate(self._processes)}

    def wait(self, timeout: float = -1, period: float = 1) -> RunProcsResult | None:
        """Wait a moment for news; a result once all have ended well or one has failed.

        Raises:
            SignalException: when the launcher was told to stop.
        """
        if self._engine.stop.signum is not None:
            raise SignalException("asked to stop", signal.Signals(self._engine.stop.signum))
        alive = [process.sentinel for process in self._processes if process.exitcode is None]
        connection.wait([*alive, self._engine.channel.wakeup], _POLL_SECONDS)
        codes = [process.exitcode for process in self._processes]
        failed = [rank for rank, code in enumerate(codes) if code]
        failed += [rank for rank, heard in self._engine.channel.heard().items() if heard.failure]
        if failed:
            self.close()
            rank = failed[0]
            return RunProcsResult(failures={rank: ProcessFailure(rank, self.pids()[rank], codes[rank] or 1, "")})
        if all(code == 0 for code in codes):
            self.close()
            return RunProcsResult(return_values=dict.fromkeys(range(len(codes))))
        return None

    def close(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 0) -> None:
        """Tell the living to end, wait the grace out, kill the rest and whatever they started."""
        if self._ended:
            return
        self._ended = True
        started = time.monotonic()
        times = self._engine.stop.times
        self._tell(death_sig, spare=self._engine.channel.heard())
        said = False
        while living := [rank for rank, process in enumerate(self._processes) if process.exitcode is None]:
            waited = time.monotonic() - started
            if waited > self._engine.plan.grace or self._engine.stop.times > max(times, 1):
                self._tell(signal.SIGKILL)
                break
            if waited > _PATIENCE_SECONDS and not said:
                said = True
                self._engine.say(
                    f"minetorch-launch: waiting up to {self._engine.plan.grace:g} s for ranks "
                    f"{', '.join(map(str, living))} to end; Ctrl-C kills them at once"
                )
            connection.wait([self._processes[rank].sentinel for rank in living], _POLL_SECONDS)
        for process in self._processes:
            process.join(self._engine.plan.grace)
        self._engine.channel.end_attempt()
        self._engine.channel.settle()

    def report(self) -> FailureReport | None:
        """Who failed first in this attempt."""
        plan = self._engine.plan
        return make_report(
            [self._end(rank) for rank in range(len(self._processes))],
            restarts=self._attempt,
            max_restarts=plan.max_restarts,
            command=str(plan.target),
        )

    def _tell(self, signum: int, spare: dict[int, Any] | None = None) -> None:
        for rank, process in enumerate(self._processes):
            heard = (spare or {}).get(rank)
            if process.exitcode is not None or (heard is not None and heard.failure):
                continue  # a worker that says it fails is on its way out, and may be saving something
            if not forkserver.is_alive(process.pid):
                continue  # dead but not yet reaped: not ours, and perhaps the cause of all
            self._told.setdefault(rank, (time.time(), set()))[1].add(signum)
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, signum)

    def _end(self, rank: int) -> WorkerEnd:
        process, plan = self._processes[rank], self._engine.plan
        heard = self._engine.channel.heard().get(rank)
        said = heard.failure if heard else None
        told_at, told = self._told.get(rank, (None, set()))
        code, summary = process.exitcode, said["summary"] if said else ""
        if code == 255 and not said and plan.start_method == "forkserver" and forkserver.has_died(_DYING_SECONDS):
            code, summary = -signal.SIGKILL, "killed along with the fork server, which somebody killed"
        log_file = plan.workers[rank].log_file
        return WorkerEnd(
            rank=rank,
            host=plan.node.host,
            pid=process.pid or 0,
            exit_code=code,
            ended_at=said["time"] if said else (heard.ended_at if heard else None) or time.time(),
            told_at=told_at,
            told=frozenset(told),
            said_code=said["code"] if said else None,
            summary=summary,
            traceback=said["traceback"] if said else tidy_crash(heard.crash()) if heard else "",
            log_file=str(log_file) if log_file else None,
        )


class _FreshStore(RendezvousHandler):
    """A rendezvous whose every round gives the workers a new, empty store, kept by the first node's agent."""

    def __init__(self, inner: RendezvousHandler) -> None:
        self._inner = inner
        self._server: TCPStore | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        info = self._inner.next_rendezvous()
        host = "127.0.0.1"
        if info.rank == 0:
            # The port is never let go of between being found and being used, as torch's own way does.
            self._server = TCPStore(host, 0, is_master=True, wait_for_workers=False, multi_tenant=True)
        port = self._server.port if self._server is not None else 0
        store = PrefixStore("minetorch", info.store)
        place = RendezvousStoreInfo.build(info.rank, store, local_addr=host, server_port=port)
        return RendezvousInfo(info.store, info.rank, info.world_size, place)

    @property
    def use_agent_store(self) -> bool:
        return True

    def get_backend(self) -> str:
        return self._inner.get_backend()

    def is_closed(self) -> bool:
        return self._inner.is_closed()

    def set_closed(self) -> None:
        self._inner.set_closed()

    def num_nodes_waiting(self) -> int:
        return self._inner.num_nodes_waiting()

    def get_run_id(self) -> str:
        return self._inner.get_run_id()

    def shutdown(self) -> bool:
        return self._inner.shutdown()


class _NoLogs(LogsSpecs):
    """Workers bring their streams to the channel themselves; torch would tail files, two threads a worker."""

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        none = dict.fromkeys(envs, "")
        return LogsDest(dict(none), dict(none), {}, {}, dict(none))

    @property
    def root_log_dir(self) -> str:
        return ""


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Keep the agent's log off the screen, where our own report says it better; LOGLEVEL brings it back."""
    logger = logging.getLogger("torch.distributed.elastic")
    before = logger.propagate
    silence = logging.NullHandler()
    if "LOGLEVEL" not in os.environ:
        logger.propagate = False
        logger.addHandler(silence)
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(silence)
