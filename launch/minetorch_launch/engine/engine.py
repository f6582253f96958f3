"""One launch on this machine, from the meeting of the nodes to the last worker's end."""

from __future__ import annotations

import logging
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.multiprocessing.api import SignalException

from minetorch_launch import worker
from minetorch_launch.engine.agent import Agent
from minetorch_launch.engine.council import StoreLostError
from minetorch_launch.engine.rendezvous import Rendezvous
from minetorch_launch.errors import NoProgressError, StartError, StoppedError
from minetorch_launch.failures.oom import OomCounter
from minetorch_launch.failures.report import FailureReport, WorkerEnd, make_report
from minetorch_launch.failures.restarts import Attempt, RestartCost, decide
from minetorch_launch.hangs.watch import Heartbeat, sum_up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from minetorch_launch.channel import Channel
    from minetorch_launch.console import Console
    from minetorch_launch.engine.workers import Workers
    from minetorch_launch.guard import Guard
    from minetorch_launch.plan import LaunchPlan
    from minetorch_launch.signals import Signals

__all__ = ["Engine", "Outcome"]


class _OthersRegroupError(Exception):
    """Other nodes are meeting anew and will not answer."""


_VERDICT_SECONDS = 30.0
_PARTING_SECONDS = 10.0


@dataclass(frozen=True)
class Outcome:
    """How a launch ended on this node."""

    failure: FailureReport | None = None
    """What went wrong for good; None if nothing did."""

    told_elsewhere: bool = False
    """Whether another node's launcher shows the report in full."""

    ranks: tuple[int, ...] = ()
    """This node's, when all of it went well."""

    stopped_early: bool = False
    """The workers have saved their work and want to be run again."""


@dataclass
class _Restart:
    """When each part of a restart was over, in seconds of ``time.monotonic``."""

    number: int
    failed_at: float
    noticed_at: float
    closed_at: float
    reached: int | None
    uses_trainer: bool
    met_at: float = 0.0
    started_at: float = 0.0


class Engine:
    """Carries out one plan on this machine.

    Attributes:
        rendezvous: where the nodes meet; there from :meth:`run` on.
    """

    rendezvous: Rendezvous

    def __init__(
        self,
        plan: LaunchPlan,
        task: worker.Task,
        *,
        channel: Channel,
        guard: Guard,
        signals: Signals,
        console: Console,
    ) -> None:
        self.plan, self.task = plan, task
        self.channel, self.guard, self.signals, self.console = channel, guard, signals, console
        self._attempts: list[Attempt] = []
        self._outcome = Outcome()
        self._oom = OomCounter.of_this_process()
        self._restart: _Restart | None = None

    def run(self) -> Outcome:
        """Start the workers and see them through to the end, restarts included.

        Raises:
            StoppedError: on a stop signal, after the workers are gone.
            StartError: if no worker could be started.
            JoinError: if the nodes did not come together.
            NoProgressError: if a batch job's time was up before the first step.
        """
        with _quiet_torch():
            self.rendezvous = Rendezvous(self.plan, say=self.console.say, check=self.signals.check)
            agent = Agent(self._spec(), self)
            try:
                result = agent.run()
            except SignalException as error:
                if agent.workers is not None and agent.workers.have_saved():
                    return Outcome(ranks=tuple(agent.workers.ranks), stopped_early=True)
                raise StoppedError(int(error.sigval)) from None
            except EOFError:
                raise StartError(
                    "the fork server ended before it could start the workers: see its own words above, "
                    "and try without --preload or with --start-method spawn"
                ) from None
            finally:
                self._part()
        if result.is_failed():
            return self._outcome
        workers = agent.workers
        assert workers is not None
        if workers.stopped_early and workers.gained_nothing():
            raise NoProgressError(
                "the job's time was up before the first step, and would be again: give it more (--time), or the "
                "workers less notice (--notice-before)"
            )
        return Outcome(ranks=tuple(workers.ranks), stopped_early=workers.stopped_early)

    def _spec(self) -> WorkerSpec:
        return WorkerSpec(
            role="default",
            local_world_size=len(self.plan.workers),
            entrypoint=worker.run,
            args=(self.task,),
            rdzv_handler=self.rendezvous,
            max_restarts=self.plan.max_restarts,
            monitor_interval=0.001,  # Workers.wait does the waiting
            local_addr=self.rendezvous.address,
        )

    def _part(self) -> None:
        """Let the others read the last news before the store goes with its keeper."""
        council = self.rendezvous.council
        with suppress(StoreLostError):
            council.mark("parted")
            end = time.monotonic() + self.plan.grace + _PARTING_SECONDS
            while self.rendezvous.keeps_store and not council.all_marked("parted") and time.monotonic() < end:
                council.hear()
                time.sleep(0.05)
        self.rendezvous.shutdown()

    # What the agent asks, in the order in which it does.

    def started(self, workers: Workers, met_at: float) -> None:
        """The workers of an attempt are started."""
        if self._restart is not None:
            self._restart.met_at, self._restart.started_at = met_at, time.monotonic()
            if not self._restart.uses_trainer:
                self._say_cost(None)

    def word_of_failure(self) -> dict[str, str]:
        """What a Trainer cannot know of the attempt before it: variables for its workers."""
        if self._restart is None or self._restart.reached is None:
            return {}
        failed_at = time.time() - (time.monotonic() - self._restart.failed_at)
        return {"MINETORCH_LAST_STEP": str(self._restart.reached), "MINETORCH_LAST_TIME": f"{failed_at:.3f}"}

    def look_at_first_step(self, workers: Workers) -> None:
        """Say what a restart has cost, once all of its workers have made a step."""
        if self._restart is None:
            return
        hearts = workers.heartbeats()
        if len(hearts) == len(workers.ranks) and all(heart.first_step_at is not None for heart in hearts.values()):
            self._say_cost(sum_up(hearts))

    def _say_cost(self, heart: Heartbeat | None) -> None:
        restart, self._restart = self._restart, None
        assert restart is not None
        cost = RestartCost(
            noticed=restart.noticed_at - restart.failed_at,
            stopped=restart.closed_at - restart.noticed_at,
            rendezvous=restart.met_at - restart.closed_at,
            started=restart.started_at - restart.met_at,
            first_step=heart.first_step_at - restart.started_at if heart and heart.first_step_at else None,
        )
        if self.rendezvous.council.leads:
            self.console.say(f"minetorch-launch: {cost.line(restart.number, self.plan.max_restarts)}")

    def judge(self, workers: Workers) -> bool:
        """All nodes' verdict on a failure: whether to go on."""
        council = self.rendezvous.council
        mine = {**workers.evidence(), "oom_kills": self._oom.kills()}
        try:
            evidence = council.gather("evidence", mine, self.plan.grace + _VERDICT_SECONDS, self._check_for_regroup)
            verdict = council.agree(
                "verdict", lambda: self._verdict(evidence), _VERDICT_SECONDS, self._check_for_regroup
            )
        except (StoreLostError, _OthersRegroupError):
            verdict = None
        if verdict is None or verdict["kind"] == "regroup":
            self.console.say("minetorch-launch: a node is gone; the others go on from the last checkpoint")
            return True
        report = FailureReport.from_dict(verdict["report"])
        self._attempts.append(Attempt(report, verdict["reached"], verdict["began"], verdict["uses_trainer"]))
        self.rendezvous.failures += 1
        self._note(report, workers.ranks, verdict["because"])
        if verdict["kind"] == "end":
            self._outcome = Outcome(report, told_elsewhere=not council.leads)
            return False
        assert workers.noticed_at is not None
        assert workers.closed_at is not None
        self._restart = _Restart(
            number=self.rendezvous.failures,
            # The report's times are wall-clock ones.
            failed_at=min(workers.noticed_at, time.monotonic() - (time.time() - report.first.time)),
            noticed_at=workers.noticed_at,
            closed_at=workers.closed_at,
            reached=verdict["reached"],
            uses_trainer=verdict["uses_trainer"],
        )
        if council.leads:
            line = f"minetorch-launch: {report.line()}; {verdict['because']}"
            self.console.say("\n".join(filter(None, (report.first.traceback.rstrip(), report.advice, line))))
        return True

    def _note(self, report: FailureReport, ranks: list[int], because: str) -> None:
        """Keep the failure in the ranks' own logs, which their workers could not write."""
        for failure in (report.first, *report.later):
            if failure.rank in ranks and failure.traceback:
                self.console.log(failure.rank, failure.traceback.rstrip("\n"))
        for rank in ranks:
            self.console.log(rank, f"minetorch-launch: {report.line()}; {because}")
        self.console.show_tail(report.first.rank)

    def _check_for_regroup(self) -> None:
        self.signals.check()
        council = self.rendezvous.council
        for news in council.hear():
            if news["kind"] == "regroup":
                raise _OthersRegroupError
            if news["kind"] == "stop":
                self.console.say(council.stop_line(news))
                raise StoppedError(news["signum"])

    def _verdict(self, evidence: dict[int, Any]) -> dict[str, Any]:
        """What the leader makes of all nodes' evidence: plain data, for the others."""
        ends = [WorkerEnd.from_dict(end) for node in evidence.values() for end in node["ends"]]
        failed = [end for end in ends if end.has_failed]
        if not failed or (self.rendezvous.council.lost and all(end.is_consequence for end in failed)):
            return {"kind": "regroup"}
        report = make_report(
            ends,
            restarts=self.rendezvous.failures,
            max_restarts=self.plan.max_restarts,
            command=str(self.plan.target),
            oom_kills={node["ends"][0]["host"]: node["oom_kills"] for node in evidence.values()},
        )
        assert report is not None
        hearts = [Heartbeat(**node["heart"]) for node in evidence.values() if node["heart"]]
        summed = sum_up(dict(enumerate(hearts))) if hearts else None
        uses_trainer = summed is not None or any(node["uses_trainer"] for node in evidence.values())
        attempt = Attempt(
            report, summed.step if summed else None, summed.began_at_step if summed else None, uses_trainer
        )
        decision = decide([*self._attempts, attempt], self.plan.max_restarts)
        return {
            "kind": "restart" if decision.restart else "end",
            "because": decision.because,
            "report": replace(report, because=None if decision.restart else decision.because).to_dict(),
            "reached": attempt.reached,
            "began": attempt.began,
            "uses_trainer": attempt.uses_trainer,
        }


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
