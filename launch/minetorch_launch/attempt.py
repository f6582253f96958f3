"""One attempt on this node: from the start of its workers to the leader's order that ends the attempt."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any

from minetorch_launch.errors import NoProgressError, StoppedError
from minetorch_launch.failures.report import FailureReport, ranks_text
from minetorch_launch.failures.worker_exit import WorkerExit
from minetorch_launch.heartbeat import merge
from minetorch_launch.output.relay import Relay
from minetorch_launch.plan import LaunchPlan
from minetorch_launch.rendezvous import messages
from minetorch_launch.rendezvous.round import LeaderLostError, Round
from minetorch_launch.stop_signals import Preemption, StackRequest, Stop
from minetorch_launch.workers.group import GroupEnd, WorkerGroup
from minetorch_launch.workers.stack_dump import dump_stacks
from minetorch_launch.workers.starter import WorkerStarter

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


class NodeAttempt:
    """One attempt on this node.

    Attributes:
        group: the workers.
        noticed_at: when a failure was noticed, as `time.monotonic` gives it.
        stopped_at: when the last worker had ended.
        unreported: how workers here failed in an attempt that no leader has judged, because the leader was lost.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        round_: Round,
        group: WorkerGroup,
        starter: WorkerStarter,
        relay: Relay,
        *,
        stop: asyncio.Future[int],
        warnings: Collection[Preemption],
        unreported: list[dict[str, Any]],
        on_tick: Callable[[], None],
    ) -> None:
        self._plan, self._round, self._starter, self._relay = plan, round_, starter, relay
        self._stop, self._on_tick = stop, on_tick
        self.group, self.unreported = group, unreported
        self.noticed_at: float | None = None
        self.stopped_at: float | None = None
        self._events: asyncio.Queue[object] = asyncio.Queue()
        for warning in warnings:
            self.post(warning)
        self._saving_until: float | None = None  # the workers save before a change of the nodes: until when at most
        self._stopping: asyncio.Task[None] | None = None
        self._evidence: dict[str, Any] = {}  # how the workers ended, once they are stopped
        self._stop_deadline: float | None = None  # after a stop signal: how long to wait for the order to shut down
        self._ending: Outcome | messages.Decision | LeaderLostError | None = None

    async def run(self) -> Outcome | messages.Decision | LeaderLostError:
        """Report what happens here to the leader, and obey its orders, until one of them ends the attempt.

        Returns:
            The end of the launch, the decision of the leader, or the loss of the leader.

        Raises:
            StoppedError: a stop signal came; the workers are gone.
            NoProgressError: a batch job's time was up before the first step.
        """
        sources = asyncio.gather(self._pass_on_orders(), self._pass_on_end())
        if self.unreported:
            self._round.report(messages.WorkersFailed(self._round.node_rank))
        if self._stop.done():  # the signal came while the last worker started
            self._take_stop(self._stop.result())
        try:
            # The leader may end the attempt without this node, if the launcher was paused and its workers still stop.
            while self._ending is None or (self._stopping is not None and not self._stopping.done()):
                await self._take_next_event()
            return self._ending
        finally:
            sources.cancel()
            await asyncio.gather(sources, return_exceptions=True)

    def post(self, event: Stop | Preemption | StackRequest) -> None:
        """Take a signal."""
        self._events.put_nowait(event)

    # Signals, the end of the worker group, the leader's orders, and a tick twice a second.

    async def _pass_on_orders(self) -> None:
        try:
            order = None
            while not isinstance(order, messages.Decision | messages.Finish | messages.Shutdown):
                order = await self._round.next_order()
                self._events.put_nowait(order)
        except LeaderLostError as error:
            self._events.put_nowait(error)

    async def _pass_on_end(self) -> None:
        self._events.put_nowait(GroupEnded(await self.group.wait()))

    async def _take_next_event(self) -> None:
        try:
            event = await asyncio.wait_for(self._events.get(), _TICK_SECONDS)
        except asyncio.TimeoutError:
            self._tick()
            return
        node, group, report = self._round.node_rank, self.group, self._round.report
        match event:
            case Stop(signum=signum):
                self._take_stop(signum)
            case Preemption():
                self._take_preemption(event)
            case StackRequest():
                report(messages.StacksRequested(node))
            case GroupEnded(how=how):
                await self._take_group_end(how)
            case messages.StopWorkers(kind=kind, reason=reason, hang=hang):
                if hang is not None and hang["rank"] in group.ranks:
                    group.mark_hung(hang["rank"], hang["cause"])
                if kind == "membership":
                    self._say(f"{reason}: the workers stop, and the others continue from the last checkpoint")
                self._stop_group(alone=True)
            case messages.SaveAndStop(reason=reason):
                self._say(f"{reason}: the workers save, and restart together")
                self._saving_until = time.monotonic() + (self._plan.options.grace if group.ask_to_save() else 0.0)
            case messages.Shutdown(signum=signum, host=host):
                await self._shut_down(signum, host)
            case messages.ForwardSignal(signum=signum, host=host):
                self._warn(signum, f"{signal.Signals(signum).name} came to {host}")
            case messages.DumpStacks(request=request):
                stacks = await dump_stacks(group.workers, self._plan.host.name)
                report(messages.Stacks(node, request, [asdict(stack) for stack in stacks]))
            case messages.StackSummary(text=text, for_node=for_node):
                if for_node == node:
                    self._say(text)
            case messages.Decision():
                self._ending = event
            case messages.Finish(stopped_early=stopped_early):
                self._finish(stopped_early)
            case LeaderLostError():
                await self._lose_leader(event)

    def _tick(self) -> None:
        """What needs no event: heartbeats, the job's deadline, warnings that no worker could take yet."""
        beats = self.group.heartbeats()
        self._round.status = asdict(merge(beats)) if beats else None
        deadline = self._plan.deadline
        if deadline is not None and time.time() >= deadline.warning_at:
            self._warn(signal.SIGUSR2, f"the job ends in {max(0.0, deadline.at - time.time()):.0f} s")
        for signum, ranks in self.group.warn_pending().items():
            if ranks:
                self._say(f"passed {signal.Signals(signum).name} on to {ranks_text(ranks)}")
        self._on_tick()
        if self._saving_until is not None and time.monotonic() > self._saving_until:
            self._stop_group()
        if self._stop_deadline is not None and time.monotonic() > self._stop_deadline and self.stopped_at:
            self._end_stopped(self._stop.result())

    # The group ends.

    async def _take_group_end(self, how: GroupEnd) -> None:
        if self._stopping is not None:
            return
        node, report = self._round.node_rank, self._round.report
        if how == "failed":
            self.noticed_at = time.monotonic()
            report(messages.WorkersFailed(node))
        elif how == "stopped by signal":
            assert self.group.stopped_by is not None
            report(messages.StopRequested(node, self.group.stopped_by))
        elif self._saving_until is not None:
            self._stop_group()
        else:
            await self.group.stop()  # one that did not stop early in its time, and what workers left running
            await self._settle()
            report(messages.WorkersSucceeded(node, stopped_early=how == "stopped early"))

    def _stop_group(self, *, signum: int = signal.SIGTERM, alone: bool = False) -> None:
        """Stop the workers, and report their end to the leader; the agent continues to take events."""
        if self._stopping is None:
            self.noticed_at = self.noticed_at or time.monotonic()
            self._stopping = asyncio.ensure_future(self._stop_and_report(signum, alone))

    async def _stop_and_report(self, signum: int, alone: bool) -> None:
        await self.group.stop(signum, alone=alone)
        await self._settle()
        beats = self.group.heartbeats()
        exits = [asdict(each) for each in self.group.evidence()]
        exits += self.unreported
        self.unreported = []
        self._evidence = {"exits": exits, "heartbeat": asdict(merge(beats)) if beats else None}
        self._round.report(messages.WorkersStopped(self._round.node_rank, self._evidence))

    async def _settle(self) -> None:
        """Kill what the workers left running, and take their last lines."""
        await self._starter.end_descendants()
        await self._relay.drain()
        self.stopped_at = time.monotonic()

    # Signals.

    def _take_stop(self, signum: int) -> None:
        if self._stop_deadline is not None:
            self.group.kill_now.set()
            return
        self._stop_deadline = time.monotonic() + self._plan.options.grace + _SHUTDOWN_SECONDS
        self._round.report(messages.StopRequested(self._round.node_rank, signum))
        self._stop_group(signum=signum)

    async def _shut_down(self, signum: int, host: str) -> None:
        if not self._stop.done() and self.group.stopped_by is None:
            self._say(f"{host} received {signal.Signals(signum).name}, so that all nodes stop")
        self._stop_group(signum=signum)
        assert self._stopping is not None
        while not self._stopping.done():
            await asyncio.wait([self._stopping], timeout=0.05)
            while not self._events.empty():  # a second stop signal
                if isinstance(self._events.get_nowait(), Stop):
                    self.group.kill_now.set()
        self._end_stopped(signum)

    def _end_stopped(self, signum: int) -> None:
        if not self.group.have_saved():
            raise StoppedError(signum)
        self._ending = Outcome(stopped_early=True)

    def _take_preemption(self, warning: Preemption) -> None:
        name = signal.Signals(warning.signum).name
        if warning.reached_workers:
            self.group.note_warned(warning.signum)
            self._say(f"{name} came to all processes of the job")
        else:
            self._round.report(messages.Preempted(self._round.node_rank, warning.signum))

    def _warn(self, signum: int, reason: str) -> None:
        ranks = self.group.warn(signum)
        if ranks:
            self._say(f"{reason}: passed it on to {ranks_text(ranks)}")
        elif ranks is not None:
            self._say(f"{reason}: no worker here has a handler for it so far, so that they continue")

    # The end of the launch, or of its leader.

    def _finish(self, stopped_early: bool) -> None:
        if stopped_early and self._gained_nothing():
            raise NoProgressError(
                "the job ran out of time before the first step, and would again: raise --time, or lower "
                "--preempt-before"
            )
        results = tuple(worker.result() for worker in self.group.workers)
        self._ending = Outcome(results=results, stopped_early=stopped_early)

    def _gained_nothing(self) -> bool:
        """Whether the job's time ended before a Trainer had made its first new step."""
        beats, deadline = self.group.heartbeats(), self._plan.deadline
        if not beats or deadline is None or time.time() < deadline.warning_at:
            return False
        return not merge(beats).has_stepped

    async def _lose_leader(self, error: LeaderLostError) -> None:
        """Stop the workers and join the others again; a failure of a worker here is reported in the next round."""
        self._say(f"the leader of the job is lost ({error}): the workers stop, and the others continue without it")
        self._stop_group(alone=True)
        assert self._stopping is not None
        await self._stopping
        if self._stop.done():
            self._end_stopped(self._stop.result())
            return
        exits = (WorkerExit(**each) for each in self._evidence["exits"])
        self.unreported = [asdict(each) for each in exits if each.failed and not each.is_secondary]
        self._ending = error

    def _say(self, text: str) -> None:
        self._relay.say(f"minetorch-launch: {text}")
