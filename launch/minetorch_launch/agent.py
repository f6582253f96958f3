"""The agent: runs this node's part of a launch, round after round.

    join a round → start the workers → run the attempt → obey the leader's decision

On one node, and on the node that leads, the leader runs beside the attempt. Everything runs in one event loop, in one
thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any, TypeVar

from minetorch_launch.attempt import NodeAttempt, Outcome
from minetorch_launch.errors import StoppedError
from minetorch_launch.failures.report import FailureReport
from minetorch_launch.failures.restart_policy import Attempt, Restart
from minetorch_launch.leader import Leader
from minetorch_launch.output.relay import Relay
from minetorch_launch.plan import LaunchPlan
from minetorch_launch.rendezvous import messages
from minetorch_launch.rendezvous.many_nodes import ManyNodes
from minetorch_launch.rendezvous.round import LeaderLostError, Round
from minetorch_launch.rendezvous.single_node import SingleNode
from minetorch_launch.stop_signals import Preemption, StackRequest, Stop, StopSignals
from minetorch_launch.workers.starter import WorkerStarter
from minetorch_launch.workers.store import WorkersStore

T = TypeVar("T")


class Agent:
    """Runs one plan on this node."""

    def __init__(
        self,
        plan: LaunchPlan,
        open_rendezvous: Callable[[], Awaitable[SingleNode | ManyNodes]],
        starter: WorkerStarter,
        relay: Relay,
    ) -> None:
        self.signals: StopSignals | None = None
        """Hands the launcher's signals over to `post`."""

        self._plan, self._open_rendezvous, self._starter, self._relay = plan, open_rendezvous, starter, relay
        self._store: WorkersStore
        """The workers' store, should this be the first node."""

        self._stop: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._attempts: list[Attempt] = []
        self._failures = 0
        self._restart: Restart | None = None
        self._current: NodeAttempt | None = None
        self._warnings: set[Preemption] = set()
        """The preemption warnings so far: workers that start later get them too."""

        self._unreported: list[dict[str, Any]] = []
        """How workers here failed in an attempt that no leader has judged, because the leader was lost."""

    async def run(self) -> Outcome:
        """Run the workers to their end, restarts included.

        Raises:
            StoppedError: a stop signal came; the workers are gone.
            StartError: no worker could be started.
            JoinError: the nodes did not come together.
            NoProgressError: a batch job's time was up before the first step.
        """
        await self._starter.prepare()
        rendezvous = await self._unless_stopped(self._open_rendezvous())
        try:
            self._starter.address = rendezvous.address
            self._store = WorkersStore(rendezvous.address, self._plan.master_port or 0, self._starter.start_store)
            with closing(self._store):
                while True:
                    joining = rendezvous.join(failures=self._failures, workers_port=self._store.port)
                    outcome = await self._run_round(await self._unless_stopped(joining))
                    if outcome is not None:
                        return outcome
        finally:
            await rendezvous.close()

    def post(self, event: Stop | Preemption | StackRequest) -> None:
        """Take a signal."""
        if isinstance(event, Stop) and not self._stop.done():
            self._stop.set_result(event.signum)
        if isinstance(event, Preemption):
            self._warnings.add(Preemption(event.signum))
        if self._current is not None:
            self._current.post(event)

    async def _unless_stopped(self, work: Awaitable[T]) -> T:
        """Do ``work``, but give it up when a stop signal comes."""
        task = asyncio.ensure_future(work)
        waited: list[asyncio.Future[Any]] = [task, self._stop]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
            raise StoppedError(self._stop.result())
        return await task

    async def _run_round(self, round_: Round) -> Outcome | None:
        """One attempt; None if another has to follow."""
        if self._restart is not None:
            self._restart.joined_at = time.monotonic()
        if round_.node_rank == 0:
            self._store.open()
        leading = None
        if round_.leads:
            leading = asyncio.ensure_future(Leader(self._plan, round_, self._attempts, self._say).run())
        try:
            group = await self._unless_stopped(self._starter.start(round_, self._last_failure()))
            with closing(group):
                attempt = self._current = NodeAttempt(
                    self._plan,
                    round_,
                    group,
                    self._starter,
                    self._relay,
                    stop=self._stop,
                    warnings=self._warnings,
                    unreported=self._unreported,
                    on_tick=lambda: self._tick(attempt, round_),
                )
                self._note_start(round_)
                ending = await attempt.run()
                self._unreported = attempt.unreported
                if isinstance(ending, messages.Decision):
                    return self._obey(ending, attempt, round_)
                return None if isinstance(ending, LeaderLostError) else ending
        finally:
            self._current = None
            if leading is not None:
                leading.cancel()
                await asyncio.gather(leading, return_exceptions=True)
            await self._store.end()

    def _tick(self, attempt: NodeAttempt, round_: Round) -> None:
        if self.signals is not None:
            self.signals.poll()
        beats = attempt.group.heartbeats()
        if self._restart is not None and len(beats) == len(attempt.group.ranks):
            first_steps = [beat.first_step_at for beat in beats.values()]
            if None not in first_steps:
                self._say_cost(round_, max(filter(None, first_steps)))

    def _obey(self, decision: messages.Decision, attempt: NodeAttempt, round_: Round) -> Outcome | None:
        """Do what the leader decides; the end of the launch, or None for another attempt."""
        if decision.report is None:
            self._say(decision.reason)
            return None
        report = FailureReport.from_dict(decision.report)
        self._attempts.append(Attempt(report, decision.reached, decision.began))
        self._failures = decision.failures
        self._note_failure(attempt.group.ranks, report, decision.reason)
        if decision.kind == "end":
            results = {worker.rank: worker.result() for worker in attempt.group.workers}
            return Outcome(report, shown_elsewhere=not round_.leads, exception=results.get(report.first.rank))
        noticed = attempt.noticed_at or time.monotonic()
        self._restart = Restart(
            number=decision.failures,
            reached=decision.reached,
            failed_at=min(noticed, time.monotonic() - (time.time() - report.first.time)),  # that is a wall-clock time
            noticed_at=noticed,
            stopped_at=attempt.stopped_at or time.monotonic(),
        )
        if round_.leads:
            line = f"minetorch-launch: {report.line()}; {decision.reason}"
            self._relay.say("\n".join(filter(None, (report.first.traceback.rstrip(), report.hint, line))))
        return None

    def _note_failure(self, ranks: list[int], report: FailureReport, reason: str) -> None:
        """Write the failure into the ranks' own log files, which their workers could not."""
        for failure in (report.first, *report.later):
            if failure.rank in ranks and failure.traceback:
                self._relay.log(failure.rank, failure.traceback.rstrip("\n"))
        for rank in ranks:
            self._relay.log(rank, f"minetorch-launch: {report.line()}; {reason}")
        self._relay.show_tail(report.first.rank)

    # What a restart costs.

    def _last_failure(self) -> tuple[int, float] | None:
        """What a Trainer cannot know of the attempt before: the step that was reached, and when it failed."""
        if self._restart is None or self._restart.reached is None:
            return None
        return self._restart.reached, time.time() - (time.monotonic() - self._restart.failed_at)

    def _note_start(self, round_: Round) -> None:
        if self._restart is not None:
            self._restart.started_at = time.monotonic()
            if self._restart.reached is None:  # no worker beats, so that the first step will not show
                self._say_cost(round_, None)

    def _say_cost(self, round_: Round, first_step_at: float | None) -> None:
        restart, self._restart = self._restart, None
        assert restart is not None
        if round_.leads:
            self._say(restart.cost(self._plan.options.max_restarts, first_step_at))

    def _say(self, text: str) -> None:
        self._relay.say(f"minetorch-launch: {text}")
