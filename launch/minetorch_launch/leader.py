"""The leader of a round: turns what all nodes report into orders that all nodes obey.

The node that hosts the round's store runs it, beside its agent. It alone decides: which failure came first, whether to
restart, whether the workers hang. A round ends with exactly one of the orders `Decision`, `Finish` and `Shutdown`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from minetorch_launch.failures.report import make_report
from minetorch_launch.failures.restart_policy import Attempt, RestartPolicy
from minetorch_launch.failures.worker_exit import WorkerExit
from minetorch_launch.hangs.detector import HangDetector, Stall
from minetorch_launch.hangs.stack_summary import StackSnapshot, summarize
from minetorch_launch.heartbeat import Heartbeat, merge
from minetorch_launch.plan import LaunchPlan
from minetorch_launch.rendezvous import messages
from minetorch_launch.rendezvous.round import Round

_POLL_SECONDS = 0.5
_STACKS_SECONDS = 5.0


@dataclass
class _StackRequest:
    """A request for all stacks that is under way."""

    number: int
    deadline: float
    for_node: int | None
    """The node whose user asked; None: the workers hang."""

    stall: Stall | None
    answers: dict[int, list[StackSnapshot]]


class Leader:
    """Leads one round."""

    def __init__(
        self, plan: LaunchPlan, round_: Round, attempts: Sequence[Attempt], say: Callable[[str], None]
    ) -> None:
        self._plan, self._round, self._attempts, self._say = plan, round_, attempts, say
        self._detector = HangDetector(plan.options.hang_timeout)
        self._is_stopping = self._is_saving = self._is_over = False
        self._succeeded: dict[int, bool] = {}
        self._evidence: dict[int, dict[str, Any]] = {}
        self._requests = 0
        self._stacks: _StackRequest | None = None

    async def run(self) -> None:
        """Lead the round until the order that ends it is sent."""
        while not self._is_over:
            report = None
            with suppress(asyncio.TimeoutError):
                report = await asyncio.wait_for(self._round.next_report(), _POLL_SECONDS)
            if report is not None:
                await self._take(report)
            await self._check_stacks()
            await self._look_for_a_hang()

    async def _take(self, report: messages.Report) -> None:
        match report:
            case messages.WorkersFailed(node=node):
                await self._stop_workers(f"a worker failed on {self._host(node)}", "failure")
            case messages.WorkersStopped(node=node, evidence=evidence):
                self._evidence[node] = evidence
                await self._decide_when_stopped()
            case messages.WorkersSucceeded(node=node, stopped_early=stopped_early):
                self._succeeded[node] = stopped_early
                await self._finish_when_succeeded()
            case messages.StopRequested(node=node, signum=signum):
                await self._end(messages.Shutdown(signum, self._host(node)))
            case messages.Preempted(node=node, signum=signum):
                await self._round.send_order(messages.ForwardSignal(signum, self._host(node)))
            case messages.StacksRequested(node=node):
                await self._request_stacks(node, None)
            case messages.Stacks(node=node, request=request, stacks=stacks):
                if self._stacks is not None and self._stacks.number == request:
                    self._stacks.answers[node] = [StackSnapshot.from_dict(stack) for stack in stacks]
            case messages.NodeLost(node=node):
                self._say(f"{self._host(node)} is lost: nothing has come from it for too long")
                await self._stop_workers(f"{self._host(node)} is lost", "membership")
                await self._decide_when_stopped()
            case messages.NodeArrived():
                if not self._is_stopping and not self._is_saving:
                    self._is_saving = True
                    await self._round.send_order(messages.SaveAndStop("a node has joined the job"))

    def _host(self, node: int) -> str:
        return self._round.participants[node].host

    def _living(self) -> set[int]:
        return set(range(len(self._round.participants))) - self._round.lost

    async def _end(self, order: messages.Order) -> None:
        self._is_over = True
        await self._round.send_order(order)

    async def _stop_workers(
        self, reason: str, kind: Literal["failure", "hang", "membership"], hang: dict[str, Any] | None = None
    ) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            await self._round.send_order(messages.StopWorkers(reason, kind, hang))

    async def _finish_when_succeeded(self) -> None:
        if not self._is_stopping and not self._is_saving and self._living() <= self._succeeded.keys():
            await self._end(messages.Finish(any(self._succeeded.values())))

    # A failure.

    async def _decide_when_stopped(self) -> None:
        """Decide when every living node has stopped its workers, however long that takes."""
        if not self._is_over and self._living() <= self._evidence.keys():
            await self._end(self._decide())

    def _decide(self) -> messages.Order:
        exits = [WorkerExit(**data) for evidence in self._evidence.values() for data in evidence["exits"]]
        failed = [end for end in exits if end.failed]
        if not failed and not self._round.lost and all(end.exit_code == 0 for end in exits):
            return messages.Finish(stopped_early=False)
        if not failed or (self._round.lost and all(end.is_secondary for end in failed)):
            return messages.Decision("rejoin", "the workers continue from the last checkpoint")
        options = self._plan.options
        report = make_report(
            exits,
            restarts=self._round.failures,
            max_restarts=options.max_restarts,
            command=str(self._plan.target),
        )
        assert report is not None
        beats = [Heartbeat.from_dict(end["heartbeat"]) for end in self._evidence.values() if end["heartbeat"]]
        world = merge(dict(enumerate(beats))) if beats else None
        attempt = Attempt(report, world.step if world else None, world.began_at_step if world else None)
        policy = RestartPolicy(options.max_restarts, options.restart_policy)
        decision = policy.decide([*self._attempts, attempt])
        report = replace(report, reason=None if decision.restart else decision.reason)
        return messages.Decision(
            "restart" if decision.restart else "end",
            decision.reason,
            asdict(report),
            failures=self._round.failures + 1,
            reached=attempt.reached,
            began=attempt.began,
        )

    # A hang, and requests to show where every rank is.

    async def _look_for_a_hang(self) -> None:
        if self._is_stopping or self._is_over or (self._stacks is not None and self._stacks.stall is not None):
            return
        beats = {node: Heartbeat.from_dict(status) for node, status in self._round.statuses.items() if status}
        stall = self._detector.look(beats, time.monotonic())
        if (warning := self._detector.missing_heartbeats()) is not None:
            self._say(warning)
        if stall is not None:
            await self._request_stacks(None, stall)

    async def _request_stacks(self, for_node: int | None, stall: Stall | None) -> None:
        self._requests += 1
        self._stacks = _StackRequest(self._requests, time.monotonic() + _STACKS_SECONDS, for_node, stall, {})
        await self._round.send_order(messages.DumpStacks(self._requests))

    async def _check_stacks(self) -> None:
        request = self._stacks
        if request is None:
            return
        if not self._living() <= request.answers.keys() and time.monotonic() < request.deadline:
            return
        self._stacks = None
        summary = summarize([stack for node in sorted(request.answers) for stack in request.answers[node]])
        if request.stall is None:
            await self._round.send_order(messages.StackSummary(summary.text(), request.for_node or 0))
            return
        self._say(summary.text(request.stall.line()))
        rank = next(iter(summary.odd_ranks), 0)
        hang = {"rank": rank, "cause": summary.blame()}
        await self._stop_workers("the workers hang", "hang", hang)
