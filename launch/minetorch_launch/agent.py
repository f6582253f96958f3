"""The agent: runs this node's part of a launch, round after round.

    join a round → start the workers → watch them → stop them → obey the leader's decision

The agent reports what happens here to the leader of the round, and obeys the leader's orders; on one node, and on the
node that leads, the leader runs beside it. Everything runs in one event loop, in one thread.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from minetorch_launch.errors import NoProgressError, StoppedError
from minetorch_launch.failures.report import FailureReport
from minetorch_launch.failures.restart_policy import Attempt, Restart
from minetorch_launch.failures.worker_exit import WorkerExit
from minetorch_launch.heartbeat import merge
from minetorch_launch.leader import Leader
from minetorch_launch.output.relay import Relay
from minetorch_launch.plan import LaunchPlan
from minetorch_launch.rendezvous import messages
from minetorch_launch.rendezvous.many_nodes import ManyNodes
from minetorch_launch.rendezvous.round import LeaderLostError, Round
from minetorch_launch.rendezvous.single_node import SingleNode
from minetorch_launch.stop_signals import Preemption, StackRequest, Stop, StopSignals
from minetorch_launch.workers.group import GroupEnd, WorkerGroup, ranks_text
from minetorch_launch.workers.stack_dump import dump_stacks
from minetorch_launch.workers.starter import WorkerStarter
from minetorch_launch.workers.store import WorkersStore

T = TypeVar("T")

_TICK_SECONDS = 0.5
_SHUTDOWN_SECONDS = 5.0


@dataclass(frozen=True)
class Outcome:
    """How a launch ended on this node."""

    failure: FailureReport | None = None
    """The failure that ended it; None if all workers succeeded."""

    shown_elsewhere: bool = False
    """The leader's launcher shows the report in full."""

    exception: bytes | None = None
    """The exception of the worker that failed first, pickled, if it ran a function on this node."""

    results: tuple[bytes | None, ...] = ()
    """By local rank: what a function returned, pickled."""

    stopped_early: bool = False
    """The workers have saved their work and want to be run again."""


@dataclass(frozen=True)
class GroupEnded:
    """The worker group has ended by itself."""

    how: GroupEnd


@dataclass
class _Attempt:
    """All state of one attempt on this node."""

    round: Round
    group: WorkerGroup
    events: asyncio.Queue[object] = field(default_factory=asyncio.Queue)
    noticed_at: float | None = None
    """When a failure was noticed,"""

    stopped_at: float | None = None
    """and when the last worker had ended."""

    saving_until: float | None = None
    """The workers save before a change of the nodes: until when at most."""

    stopping: asyncio.Task[None] | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    """How the workers ended, once they are stopped."""

    outcome: Outcome | None = None
    is_over: bool = False
    stop_deadline: float | None = None
    """A stop signal came here: how long to wait for the leader's order to shut down."""


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
        self._current: _Attempt | None = None
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
        if self._current is not None:
            self._current.events.put_nowait(event)

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
        tasks: list[asyncio.Future[Any]] = []
        if round_.leads:
            leader = Leader(self._plan, round_, self._attempts, self._say)
            tasks.append(asyncio.ensure_future(leader.run()))
        try:
            group = await self._unless_stopped(self._starter.start(round_, self._last_failure()))
            attempt = self._current = _Attempt(round_, group)
            tasks += [
                asyncio.ensure_future(self._pass_on_orders(attempt)),
                asyncio.ensure_future(self._pass_on_end(attempt)),
            ]
            self._note_start(attempt)
            if self._unreported:
                round_.report(messages.WorkersFailed(round_.node_rank))
            while not attempt.is_over:
                await self._take_next_event(attempt)
            return attempt.outcome
        finally:
            if self._current is not None:
                self._current.group.close()
            self._current = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._store.end()

    # What happens in an attempt: signals, the end of the worker group, the leader's orders, and a tick twice a second.

    async def _pass_on_orders(self, attempt: _Attempt) -> None:
        try:
            while True:
                attempt.events.put_nowait(await attempt.round.next_order())
        except LeaderLostError as error:
            attempt.events.put_nowait(error)

    async def _pass_on_end(self, attempt: _Attempt) -> None:
        attempt.events.put_nowait(GroupEnded(await attempt.group.wait()))

    async def _take_next_event(self, attempt: _Attempt) -> None:
        try:
            event = await asyncio.wait_for(attempt.events.get(), _TICK_SECONDS)
        except asyncio.TimeoutError:
            self._tick(attempt)
            return
        node, group, report = attempt.round.node_rank, attempt.group, attempt.round.report
        match event:
            case Stop(signum=signum):
                self._take_stop(attempt, signum)
            case Preemption():
                self._take_preemption(attempt, event)
            case StackRequest():
                report(messages.StacksRequested(node))
            case GroupEnded(how=how):
                await self._take_group_end(attempt, how)
            case messages.StopWorkers(kind=kind, reason=reason, hang=hang):
                if hang is not None and hang["rank"] in group.ranks:
                    group.mark_hung(hang["rank"], hang["cause"])
                if kind == "membership":
                    self._say(f"{reason}: the workers stop, and the others continue from the last checkpoint")
                self._stop_group(attempt, alone=True)
            case messages.SaveAndStop(reason=reason):
                self._say(f"{reason}: the workers save, and restart together")
                attempt.saving_until = time.monotonic() + (self._plan.options.grace if group.ask_to_save() else 0.0)
            case messages.Shutdown(signum=signum, host=host):
                await self._shut_down(attempt, signum, host)
            case messages.ForwardSignal(signum=signum, host=host):
                self._warn(group, signum, f"{signal.Signals(signum).name} came to {host}")
            case messages.DumpStacks(request=request):
                stacks = await dump_stacks(group.workers, self._plan.host.name)
                report(messages.Stacks(node, request, [asdict(stack) for stack in stacks]))
            case messages.StackSummary(text=text, for_node=for_node):
                if for_node == node:
                    self._say(text)
            case messages.Decision():
                self._obey(attempt, event)
            case messages.Finish(stopped_early=stopped_early):
                self._finish(attempt, stopped_early)
            case LeaderLostError():
                await self._lose_leader(attempt, event)

    def _tick(self, attempt: _Attempt) -> None:
        """What needs no event: heartbeats, the job's deadline, warnings that no worker could take yet."""
        beats = attempt.group.heartbeats()
        attempt.round.status = asdict(merge(beats)) if beats else None
        if self.signals is not None:
            self.signals.poll()
        deadline = self._plan.deadline
        if deadline is not None and time.time() >= deadline.warning_at:
            self._warn(attempt.group, signal.SIGUSR2, f"the job ends in {max(0.0, deadline.at - time.time()):.0f} s")
        for signum, ranks in attempt.group.warn_pending().items():
            if ranks:
                self._say(f"passed {signal.Signals(signum).name} on to {ranks_text(ranks)}")
        self._note_first_step(attempt)
        if attempt.saving_until is not None and time.monotonic() > attempt.saving_until:
            self._stop_group(attempt)
        if attempt.stop_deadline is not None and time.monotonic() > attempt.stop_deadline and attempt.stopped_at:
            self._end_stopped(attempt, self._stop.result())

    # The group ends.

    async def _take_group_end(self, attempt: _Attempt, how: GroupEnd) -> None:
        node, report = attempt.round.node_rank, attempt.round.report
        if attempt.stopping is not None:
            return
        if how == "failed":
            attempt.noticed_at = time.monotonic()
            report(messages.WorkersFailed(node))
        elif how == "stopped by signal":
            assert attempt.group.stopped_by is not None
            report(messages.StopRequested(node, attempt.group.stopped_by))
        elif attempt.saving_until is not None:
            self._stop_group(attempt)
        else:
            await attempt.group.stop()  # one that did not stop early in its time, and what workers left running
            await self._settle(attempt)
            report(messages.WorkersSucceeded(node, stopped_early=how == "stopped early"))

    def _stop_group(self, attempt: _Attempt, *, signum: int = signal.SIGTERM, alone: bool = False) -> None:
        """Stop the workers, and report their end to the leader; the agent goes on taking events meanwhile."""
        if attempt.stopping is None:
            attempt.noticed_at = attempt.noticed_at or time.monotonic()
            attempt.stopping = asyncio.ensure_future(self._stop_and_report(attempt, signum, alone))

    async def _stop_and_report(self, attempt: _Attempt, signum: int, alone: bool) -> None:
        await attempt.group.stop(signum, alone=alone)
        await self._settle(attempt)
        beats = attempt.group.heartbeats()
        exits = [asdict(each) for each in attempt.group.evidence()]
        exits += self._unreported
        self._unreported = []
        attempt.evidence = {"exits": exits, "heartbeat": asdict(merge(beats)) if beats else None}
        attempt.round.report(messages.WorkersStopped(attempt.round.node_rank, attempt.evidence))

    async def _settle(self, attempt: _Attempt) -> None:
        """Kill what the workers left running, and take their last lines."""
        await self._starter.end_descendants()
        await self._relay.drain()
        attempt.stopped_at = time.monotonic()

    # Signals.

    def _take_stop(self, attempt: _Attempt, signum: int) -> None:
        if attempt.stop_deadline is not None:
            attempt.group.kill_now.set()
            return
        attempt.stop_deadline = time.monotonic() + self._plan.options.grace + _SHUTDOWN_SECONDS
        attempt.round.report(messages.StopRequested(attempt.round.node_rank, signum))
        self._stop_group(attempt, signum=signum)

    async def _shut_down(self, attempt: _Attempt, signum: int, host: str) -> None:
        if not self._stop.done() and attempt.group.stopped_by is None:
            self._say(f"{host} received {signal.Signals(signum).name}, so that all nodes stop")
        self._stop_group(attempt, signum=signum)
        assert attempt.stopping is not None
        while not attempt.stopping.done():
            await asyncio.wait([attempt.stopping], timeout=0.05)
            while not attempt.events.empty():  # a second stop signal
                if isinstance(attempt.events.get_nowait(), Stop):
                    attempt.group.kill_now.set()
        self._end_stopped(attempt, signum)

    def _end_stopped(self, attempt: _Attempt, signum: int) -> None:
        if not attempt.group.have_saved():
            raise StoppedError(signum)
        attempt.outcome, attempt.is_over = Outcome(stopped_early=True), True

    def _take_preemption(self, attempt: _Attempt, warning: Preemption) -> None:
        name = signal.Signals(warning.signum).name
        if warning.reached_workers:
            attempt.group.note_warned(warning.signum)
            self._say(f"{name} came to all processes of the job")
        else:
            attempt.round.report(messages.Preempted(attempt.round.node_rank, warning.signum))

    def _warn(self, group: WorkerGroup, signum: int, reason: str) -> None:
        ranks = group.warn(signum)
        if ranks:
            self._say(f"{reason}: passed it on to {ranks_text(ranks)}")
        elif ranks is not None:
            self._say(f"{reason}: no worker here has a handler for it so far, so that they continue")

    # What the leader decides.

    def _obey(self, attempt: _Attempt, decision: messages.Decision) -> None:
        attempt.is_over = True
        if decision.report is None:
            self._say(decision.reason)
            return
        report = FailureReport.from_dict(decision.report)
        self._attempts.append(Attempt(report, decision.reached, decision.began))
        self._failures = decision.failures
        self._note_failure(attempt, report, decision.reason)
        if decision.kind == "end":
            results = {worker.rank: worker.result() for worker in attempt.group.workers}
            attempt.outcome = Outcome(
                report, shown_elsewhere=not attempt.round.leads, exception=results.get(report.first.rank)
            )
            return
        noticed = attempt.noticed_at or time.monotonic()
        self._restart = Restart(
            number=decision.failures,
            reached=decision.reached,
            failed_at=min(noticed, time.monotonic() - (time.time() - report.first.time)),  # that is a wall-clock time
            noticed_at=noticed,
            stopped_at=attempt.stopped_at or time.monotonic(),
        )
        if attempt.round.leads:
            line = f"minetorch-launch: {report.line()}; {decision.reason}"
            self._relay.say("\n".join(filter(None, (report.first.traceback.rstrip(), report.hint, line))))

    def _note_failure(self, attempt: _Attempt, report: FailureReport, reason: str) -> None:
        """Write the failure into the ranks' own log files, which their workers could not."""
        for failure in (report.first, *report.later):
            if failure.rank in attempt.group.ranks and failure.traceback:
                self._relay.log(failure.rank, failure.traceback.rstrip("\n"))
        for rank in attempt.group.ranks:
            self._relay.log(rank, f"minetorch-launch: {report.line()}; {reason}")
        self._relay.show_tail(report.first.rank)

    def _finish(self, attempt: _Attempt, stopped_early: bool) -> None:
        if stopped_early and self._gained_nothing(attempt.group):
            raise NoProgressError(
                "the job ran out of time before the first step, and would again: raise --time, or lower "
                "--preempt-before"
            )
        results = tuple(worker.result() for worker in attempt.group.workers)
        attempt.outcome, attempt.is_over = Outcome(results=results, stopped_early=stopped_early), True

    def _gained_nothing(self, group: WorkerGroup) -> bool:
        """Whether the end of the job's time came before a Trainer had made a step of its own."""
        beats, deadline = group.heartbeats(), self._plan.deadline
        if not beats or deadline is None or time.time() < deadline.warning_at:
            return False
        return not merge(beats).has_stepped

    async def _lose_leader(self, attempt: _Attempt, error: LeaderLostError) -> None:
        """Stop the workers and join the others again; a failure of a worker here is reported in the next round."""
        self._say(f"the leader of the job is lost ({error}): the workers stop, and the others continue without it")
        self._stop_group(attempt, alone=True)
        assert attempt.stopping is not None
        await attempt.stopping
        if self._stop.done():
            self._end_stopped(attempt, self._stop.result())
        exits = (WorkerExit(**each) for each in attempt.evidence["exits"])
        self._unreported = [asdict(each) for each in exits if each.failed and not each.is_secondary]
        attempt.is_over = True

    # What a restart costs.

    def _last_failure(self) -> tuple[int, float] | None:
        """What a Trainer cannot know of the attempt before: the step that was reached, and when it failed."""
        if self._restart is None or self._restart.reached is None:
            return None
        return self._restart.reached, time.time() - (time.monotonic() - self._restart.failed_at)

    def _note_start(self, attempt: _Attempt) -> None:
        if self._restart is not None:
            self._restart.started_at = time.monotonic()
            if self._restart.reached is None:  # no worker beats, so that the first step will not show
                self._say_cost(attempt, None)

    def _note_first_step(self, attempt: _Attempt) -> None:
        beats = attempt.group.heartbeats()
        if self._restart is not None and len(beats) == len(attempt.group.ranks):
            first_steps = [beat.first_step_at for beat in beats.values()]
            if None not in first_steps:
                self._say_cost(attempt, max(filter(None, first_steps)))

    def _say_cost(self, attempt: _Attempt, first_step_at: float | None) -> None:
        restart, self._restart = self._restart, None
        assert restart is not None
        if attempt.round.leads:
            self._say(restart.cost(self._plan.options.max_restarts, first_step_at))

    def _say(self, text: str) -> None:
        self._relay.say(f"minetorch-launch: {text}")
