"""Torch's elastic agent, with our view of the workers, and one verdict of all nodes on a failure."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs

from minetorch_launch import forkserver, joining
from minetorch_launch.engine.workers import Workers

if TYPE_CHECKING:
    from minetorch_launch.engine.engine import Engine

__all__ = ["Agent"]


class Agent(LocalElasticAgent):
    """Runs the workers of one node, attempt after attempt."""

    def __init__(self, spec: WorkerSpec, engine: Engine) -> None:
        super().__init__(spec, _NoLogs(), start_method=engine.plan.start_method)
        self._engine = engine
        self.workers: Workers | None = None

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        engine, spec = self._engine, worker_group.spec
        met_at = time.monotonic()
        ranks = [worker.global_rank for worker in worker_group.workers]
        # Another node may have seen failures that this one has not; workers are told the same number everywhere.
        self._remaining_restarts = spec.max_restarts - engine.rendezvous.failures
        spec.args = (self._task(),)
        engine.channel.begin_attempt(engine.rendezvous.attempt)
        engine.console.begin(ranks)
        for rank in ranks:  # one log may hold many starts, of which the last is not always the one to read
            of = f"rank {rank} of {worker_group.workers[0].world_size}"
            engine.console.log(rank, f"minetorch-launch: {time.strftime('%F %T')} {engine.plan.target} as {of}")
        with ExitStack() as stack:
            if engine.plan.start_method == "forkserver":
                forkserver.keep_running(engine.guard)
                stack.enter_context(forkserver.files_beside_the_server())
            stack.enter_context(forkserver.signals_blocked())
            ids: dict[int, Any] = super()._start_workers(worker_group)
            engine.signals.hold()
        self.workers = Workers(
            self._pcontext,
            ranks,
            plan=engine.plan,
            channel=engine.channel,
            signals=engine.signals,
            rendezvous=engine.rendezvous,
            say=engine.console.say,
        )
        self._pcontext = self.workers  # type: ignore[assignment]
        engine.started(self.workers, met_at)
        return ids

    def _task(self) -> Any:
        """What a worker is told in this attempt."""
        engine = self._engine
        env = dict(engine.task.env)
        interface = joining.interface_of(engine.rendezvous.address)
        if interface is not None and "GLOO_SOCKET_IFNAME" not in os.environ:
            # Else gloo goes by the host's name, which may be unknown, or 127.0.1.1 (Debian), or open to the world.
            env["GLOO_SOCKET_IFNAME"] = interface
        attempt = engine.rendezvous.attempt
        env["MINETORCH_ATTEMPT"] = str(attempt)
        env |= engine.word_of_failure()
        return replace(engine.task, attempt=attempt, env=env)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if self.workers is not None and result.state == WorkerState.HEALTHY:
            self._engine.look_at_first_step(self.workers)
        if self.workers is not None and result.state == WorkerState.FAILED:
            going_on = self._engine.judge(self.workers)
            # Torch's agent takes one off for the restart itself.
            left = worker_group.spec.max_restarts - self._engine.rendezvous.failures
            self._remaining_restarts = max(left, 0) + 1 if going_on else 0
        return result

    def _exit_barrier(self) -> None:
        """Nothing: `Workers.wait` reports success only when all nodes' workers have ended."""


class _NoLogs(LogsSpecs):
    """Workers bring their streams to the channel themselves; torch would tail files, two threads a worker."""

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        none = dict.fromkeys(envs, "")
        return LogsDest(dict(none), dict(none), {}, {}, dict(none))

    @property
    def root_log_dir(self) -> str:
        return ""
