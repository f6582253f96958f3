"""The worker processes of one attempt, as torch's agent sees them.

Stands in for torch's own view, which waits for ever on a worker that ends well without returning
(``os._exit(0)``), gives a stop 30 fixed seconds, and reports the rank that it happens to notice first.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from contextlib import suppress
from dataclasses import asdict
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

from torch.distributed.elastic.multiprocessing.api import RunProcsResult, SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from minetorch_launch import forkserver
from minetorch_launch.engine.council import LOST_SECONDS, Council, StoreLostError
from minetorch_launch.errors import EXIT_HUNG, EXIT_STOPPED_EARLY
from minetorch_launch.failures.report import WorkerEnd, is_echo, tidy_crash
from minetorch_launch.hangs.collect import call_roll
from minetorch_launch.hangs.rollcall import Answer, RollCall
from minetorch_launch.hangs.watch import Heartbeat, Watch, sum_up

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess

    from minetorch_launch.channel import Channel
    from minetorch_launch.engine.rendezvous import Rendezvous
    from minetorch_launch.plan import LaunchPlan
    from minetorch_launch.signals import Signals

__all__ = ["Workers"]

_POLL_SECONDS = 0.1
_LOOK_SECONDS = 0.5
_PATIENCE_SECONDS = 1.0
_DYING_SECONDS = 0.5
_STUCK_SECONDS = 3.0
_ROLL_CALL_SECONDS = 5.0


class Workers:
    """This node's workers in one attempt.

    Args:
        started: what torch started; its locks and queues must last until the workers have opened theirs.
        ranks: global rank of each worker, by local rank.
        plan: the launch.
        channel: what hears of the workers.
        signals: what the launcher is told.
        rendezvous: where the nodes have met.
        say: shows a line to the user.

    Attributes:
        stopped_early: a worker ended with exit code 75: it has saved its work and wants to be run again.
        noticed_at: second of ``time.monotonic`` at which a failure was noticed, None before.
        closed_at: the same for the end of the last process.
    """

    def __init__(
        self,
        started: Any,
        ranks: list[int],
        *,
        plan: LaunchPlan,
        channel: Channel,
        signals: Signals,
        rendezvous: Rendezvous,
        say: Callable[[str], None],
    ) -> None:
        self.ranks = ranks
        self.stopped_early = False
        self.noticed_at: float | None = None
        self.closed_at: float | None = None
        self._started = started
        self._processes: list[BaseProcess] = started._pc.processes
        self._movements = selectors.DefaultSelector()
        self._movements.register(channel.wakeup, selectors.EVENT_READ)
        for process in self._processes:
            self._movements.register(process.sentinel, selectors.EVENT_READ, process)
        self._plan, self._channel, self._signals = plan, channel, signals
        self._rendezvous, self._say = rendezvous, say
        self._watch = Watch(plan.hang_timeout)
        self._looked_at = time.monotonic()
        self._told: dict[int, tuple[float, set[int]]] = {}
        self._died_at: dict[int, float] = {}
        self._noticed: set[int] = set()
        self._to_be_told: dict[int, set[int]] = {}
        self._early_at: float | None = None
        self._echo_at: float | None = None
        self._regrouping_since: float | None = None
        self._ended_well = self._ended = False
        self._hang: tuple[int, str, float] | None = None

    def pids(self) -> dict[int, int]:
        """Process ids by local rank."""
        return {local: process.pid or 0 for local, process in enumerate(self._processes)}

    def heartbeats(self) -> dict[int, Heartbeat]:
        """What the Trainers of this node have last told, by global rank; ranks without one are missing."""
        hearts = {rank: heard.heartbeat() for rank, heard in self._channel.heard().items()}
        return {rank: heart for rank, heart in hearts.items() if heart is not None and heart.beats}

    def wait(self, timeout: float = -1, period: float = 1) -> RunProcsResult | None:
        """Wait a moment for news; a result once all nodes' workers have ended well or one has failed.

        Raises:
            SignalException: when this launcher, or that of another node, was told to stop.
        """
        try:
            return self._wait()
        except StoreLostError:
            self._regroup("the node that keeps the rendezvous is gone")
            return None

    def _wait(self) -> RunProcsResult | None:
        self._take_signals()
        self._take_news()
        if self._rendezvous.regroup:
            return None
        if self.noticed_at is None:
            self._look_around()
        if self.noticed_at is None and self._something_moves():
            self._look_for_ends()
        if self.noticed_at is not None:
            self._council.post("failed")
            self.close()
            return RunProcsResult(failures={0: ProcessFailure(0, self.pids()[0], 1, "")})
        if self._regrouping_since is not None:
            self._wait_for_regroup()
            return None
        if self._ended_well and self._council.all_marked("ended"):
            self.close()
            return RunProcsResult(return_values=dict.fromkeys(range(len(self._processes))))
        return None

    @property
    def _council(self) -> Council:
        return self._rendezvous.council

    # What the launcher is told.

    def _take_signals(self) -> None:
        if self._signals.stop is not None:
            with suppress(StoreLostError):
                self._council.post("stop", signum=self._signals.stop)
            raise SignalException("asked to stop", signal.Signals(self._signals.stop))
        deadline = self._plan.deadline
        if deadline is not None and time.time() >= deadline.notice_at:
            self._notice(signal.SIGUSR2, f"the job ends in {max(0.0, deadline.at - time.time()):.0f} s")
        for notice in self._signals.take_notices():
            name = signal.Signals(notice.signum).name
            if notice.told_all:
                self._note_notice(notice.signum, f"{name} came to all of the job")
            else:
                self._notice(notice.signum, f"{name} came")
                self._council.post("notice", signum=notice.signum)
        if self._signals.take_roll_call():
            self._say(self.roll_call().text())

    def _take_news(self) -> None:
        for news in self._council.hear():
            host = self._council.members[news["from"]].host
            if news["kind"] == "stop":
                self._say(self._council.stop_line(news))
                raise SignalException("asked to stop", signal.Signals(news["signum"]))
            if news["kind"] == "notice":
                self._notice(news["signum"], f"{signal.Signals(news['signum']).name} came to {host}")
            elif news["kind"] == "roll call":
                self._council.put(news["what"], self._stacks())
            elif news["kind"] == "failed":
                self._fail()
            elif news["kind"] == "regroup":
                self._begin_regroup(news["because"])
        if self._council.lost and self.noticed_at is None:
            hosts = ", ".join(self._council.members[rank].host for rank in sorted(self._council.lost))
            self._regroup(f"lost {hosts} (no sign of life for {LOST_SECONDS:g} s)")
        elif self._regrouping_since is None and not self._ended_well and self._rendezvous.nodes_waiting():
            because = "a node has come"
            self._council.post("regroup", because=because)
            self._begin_regroup(because)

    def _notice(self, signum: int, came: str) -> None:
        """Pass a notice on, once, to each worker, as soon as it takes it."""
        if signum in self._noticed:
            return
        told = self._tell_of(signum, set(range(len(self._processes))))
        if told:
            self._note_notice(signum, f"{came}: told {_ranks_text(told)} to stop soon")
        else:
            self._note_notice(signum, f"{came}: no worker here takes it so far, so they go on")

    def _tell_of(self, signum: int, locals_: set[int]) -> list[int]:
        """Send a notice to those that take it by now; the others, which may still be starting, get it later."""
        told = {local for local in locals_ if self._tell_one(local, signum, notice=True)}
        self._to_be_told[signum] = locals_ - told
        return sorted(self.ranks[local] for local in told)

    def _note_notice(self, signum: int, line: str) -> None:
        if signum not in self._noticed:
            self._noticed.add(signum)
            self._say(f"minetorch-launch: {line}")

    # Other nodes come and go.

    def _begin_regroup(self, because: str) -> None:
        """All nodes are to meet again: let Trainers save first, so that no step is lost."""
        if self._regrouping_since is not None:
            return
        self._regrouping_since = time.monotonic()
        self._say(f"minetorch-launch: {because}: the workers save, and all start anew")
        hearts = self.heartbeats()
        for local, rank in enumerate(self.ranks):
            if rank in hearts:
                self._tell_one(local, signal.SIGUSR2, notice=True)

    def _wait_for_regroup(self) -> None:
        assert self._regrouping_since is not None
        hearts = self.heartbeats()
        saving = any(
            process.exitcode is None and self.ranks[local] in hearts for local, process in enumerate(self._processes)
        )
        if not saving or time.monotonic() - self._regrouping_since > self._plan.grace:
            self.close()
            self._rendezvous.regroup = True

    def _regroup(self, because: str) -> None:
        """Something that all need is gone: end the workers, and meet the other nodes again."""
        self._say(f"minetorch-launch: {because}; the others go on from the last checkpoint")
        with suppress(StoreLostError):
            self._council.post("regroup", because=because)
        self.close(alone=True)
        self._rendezvous.regroup = True

    # How the workers fare.

    def _something_moves(self) -> bool:
        """Wait a moment for a worker to end, or to say that it fails; to ask each takes a system call and more.

        Always true while the others' ends are awaited, for a time.
        """
        ready = self._movements.select(_POLL_SECONDS)
        for key, _ in ready:
            # One that is ending cannot always be waited for yet.
            if key.data is not None and key.data.exitcode is not None:
                self._movements.unregister(key.fileobj)
        return bool(ready) or self._early_at is not None or self._echo_at is not None

    def _look_for_ends(self) -> None:
        heard = self._channel.heard()
        # Looked at once: of a worker that ended after that, this would know the end and not the failure.
        exits = [process.exitcode for process in self._processes]
        codes = [self._code(local, heard, code) for local, code in enumerate(exits)]
        for local, code in enumerate(exits):
            if code is not None:
                self._died_at.setdefault(local, time.time())
        early = any(code == EXIT_STOPPED_EARLY for code in codes)
        failed = any(code not in (None, 0, EXIT_STOPPED_EARLY) for code in codes)
        if early and self._early_at is None:
            self._early_at = time.monotonic()
        if failed and self._early_at is None:
            if self._awaits_cause(codes, heard):
                return
            self._check_for_obedience(codes)
            self._fail()
            return
        overdue = self._early_at is not None and time.monotonic() - self._early_at > self._plan.grace
        all_ended = None not in exits
        if (all_ended or overdue) and not self._ended_well and self._regrouping_since is None:
            if overdue:
                self.close()
            self.stopped_early = self._early_at is not None
            self._ended_well = True
            self._council.mark("ended")

    def _awaits_cause(self, codes: list[int | None], heard: dict[int, Any]) -> bool:
        """Whether all that have failed here only repeat another rank's error, which it may be about to say itself."""
        bad = [rank for rank, code in zip(self.ranks, codes, strict=True) if code not in (None, 0, EXIT_STOPPED_EARLY)]
        said = [heard[rank].failure if rank in heard else None for rank in bad]
        if not all(failure and is_echo(failure["summary"]) for failure in said):
            return False
        if None not in codes and not self._council.many:
            return False
        if self._echo_at is None:
            self._echo_at = time.monotonic()
            # What is told stays readable, and would end every wait at once.
            self._movements.unregister(self._channel.wakeup)
        return time.monotonic() - self._echo_at < self._plan.grace

    def have_saved(self) -> bool:
        """Whether all have ended well, and some of them early with their work saved."""
        heard = self._channel.heard()
        codes = {self._code(local, heard, process.exitcode) for local, process in enumerate(self._processes)}
        return EXIT_STOPPED_EARLY in codes and codes <= {0, EXIT_STOPPED_EARLY}

    def gained_nothing(self) -> bool:
        """Whether the end of the job's time came upon Trainers that had not made a step of their own."""
        hearts = self.heartbeats()
        deadline = self._plan.deadline
        if not hearts or deadline is None or time.time() < deadline.notice_at:
            return False
        world = sum_up(hearts)
        return world.began_at_step is None or world.step <= world.began_at_step

    def _check_for_obedience(self, codes: list[int | None]) -> None:
        """A worker that dies of a notice, knowing nothing of notices, was stopped; it has not failed."""
        died_of = {-code for code in codes if code is not None and code < 0} & self._noticed
        if died_of and all(code in (None, 0) or -code in died_of for code in codes if code is not None):
            raise SignalException("ended by its notice", signal.Signals(died_of.pop()))

    def _code(self, local: int, heard: dict[int, Any], exit_code: int | None) -> int | None:
        """How a worker says that it is ending, else how it has ended; None while it runs."""
        told = heard.get(self.ranks[local])
        if told is not None and told.failure:
            return int(told.failure["code"])
        return exit_code

    def _fail(self) -> None:
        if self.noticed_at is None:
            self.noticed_at = time.monotonic()

    def _look_around(self) -> None:
        """What need not be looked at each time."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            self._council.status = self._status()
            self._tell_the_late()
            self._look_for_hangs(now)

    def _tell_the_late(self) -> None:
        """Workers that took a notice not yet when it came may take it by now."""
        for signum, late in list(self._to_be_told.items()):
            if late and (told := self._tell_of(signum, late)):
                self._say(f"minetorch-launch: told {_ranks_text(told)} of {signal.Signals(signum).name}")

    def _look_for_hangs(self, now: float) -> None:
        hearts = self.heartbeats()
        others = {-1 - node: Heartbeat(**status) for node, status in self._council.statuses.items() if status}
        stall = self._watch.look({**hearts, **others}, now)
        if stall is None or not hearts:
            return
        call = self.roll_call()
        self._say(call.text(stall.line()))
        blamed = next((rank for rank in call.odd_ranks if rank in self.ranks), self.ranks[0])
        self._hang = (blamed, call.blame().removeprefix(f"rank {blamed} "), time.time())
        self._fail()

    def _status(self) -> dict[str, Any] | None:
        """This node's workers as one heartbeat, for the other nodes' watch."""
        hearts = self.heartbeats() if self._council.many else {}
        return asdict(sum_up(hearts)) if hearts else None

    def roll_call(self) -> RollCall:
        """Where every rank of every node is at this moment."""
        what = f"stacks {time.monotonic_ns()}"
        self._council.post("roll call", what=what)
        answers = self._council.gather(what, self._stacks(), _ROLL_CALL_SECONDS, lambda: None)
        return RollCall(Answer.from_dict(answer) for node in sorted(answers) for answer in answers[node])

    def _stacks(self) -> list[dict[str, Any]]:
        return [answer.to_dict() for answer in call_roll(self._channel.heard(), self._plan.node.host)]

    # Their end.

    def close(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 0, *, alone: bool = False) -> None:
        """Tell the living to end, wait the grace out, kill the rest and whatever they started.

        Args:
            death_sig: how to tell them.
            timeout: of torch's; the plan's grace counts.
            alone: another node is gone, with which they would wait to finish what they do.
        """
        if self._ended:
            return
        self._ended = True
        self._end_all(death_sig, alone=alone or self.noticed_at is not None)
        for process in self._processes:
            process.join(self._plan.grace)
        self.closed_at = time.monotonic()
        self._channel.end_attempt()
        self._channel.settle()

    def _end_all(self, death_sig: signal.Signals, *, alone: bool) -> None:
        began, stops = time.monotonic(), self._signals.stops
        heard = self._channel.heard()
        for local in range(len(self._processes)):
            told = heard.get(self.ranks[local])
            # A worker that says it fails is on its way out, and may be saving something.
            if told is None or not told.failure:
                self._tell_one(local, death_sig)
        beats = {rank: heart.beats for rank, heart in self.heartbeats().items()}
        said = False
        while living := [local for local, process in enumerate(self._processes) if process.exitcode is None]:
            waited = time.monotonic() - began
            if waited > self._plan.grace or self._signals.stops > max(stops, 1):
                self._kill(living)
                return
            if alone and waited > _STUCK_SECONDS:
                # A Trainer that waits for a peer that is gone has nothing to save: its last checkpoint stands.
                self._kill([local for local in living if self._is_stuck(local, beats)])
            if waited > _PATIENCE_SECONDS and not said:
                said = True
                self._say(
                    f"minetorch-launch: waiting up to {self._plan.grace:g} s for "
                    f"{_ranks_text([self.ranks[local] for local in living])} to end; Ctrl-C kills them at once"
                )
            connection.wait([self._processes[local].sentinel for local in living], _POLL_SECONDS)

    def _is_stuck(self, local: int, beats: dict[int, int]) -> bool:
        heart = self.heartbeats().get(self.ranks[local])
        return (
            heart is not None
            and heart.phase in ("training", "validating")
            and heart.beats == beats.get(self.ranks[local])
        )

    def _kill(self, locals_: list[int]) -> None:
        for local in locals_:
            self._tell_one(local, signal.SIGKILL)

    def _tell_one(self, local: int, signum: int, *, notice: bool = False) -> bool:
        """Send a worker a signal, if it lives and, for a notice, if it would not die of it unasked."""
        pid = self._processes[local].pid or 0
        # Dead but not yet reaped: not ours, and perhaps the cause of all.
        if self._processes[local].exitcode is not None or not forkserver.is_alive(pid):
            return False
        if notice and signum not in forkserver.STOP_SIGNALS and not forkserver.takes(pid, signum):
            return False
        if not notice or signum in forkserver.STOP_SIGNALS:
            self._told.setdefault(local, (time.time(), set()))[1].add(signum)
        with suppress(ProcessLookupError):
            os.kill(pid, signum)
        return True

    def evidence(self) -> dict[str, Any]:
        """What this node knows of a failure, once all workers have ended: plain data."""
        heard, hearts = self._channel.heard(), self.heartbeats()
        ends = [self._end(local, heard.get(self.ranks[local])) for local in range(len(self._processes))]
        said = [told.failure for told in heard.values() if told.failure]
        return {
            "ends": [end.to_dict() for end in ends],
            "heart": asdict(sum_up(hearts)) if hearts else None,
            "uses_trainer": any(failure["uses_trainer"] for failure in said),
        }

    def _end(self, local: int, heard: Any) -> WorkerEnd:
        process, rank = self._processes[local], self.ranks[local]
        said = heard.failure if heard else None
        told_at, told = self._told.get(local, (None, set()))
        code, summary = process.exitcode, said["summary"] if said else ""
        if code == 255 and not said and self._plan.start_method == "forkserver" and forkserver.has_died(_DYING_SECONDS):
            code, summary = -signal.SIGKILL, "killed along with the fork server, which somebody killed"
        # One that died before it could call has no other witness than its process.
        ended_at = said["time"] if said else (heard and heard.ended_at) or self._died_at.get(local) or time.time()
        said_code = said["code"] if said else None
        if self._hang is not None and self._hang[0] == rank:
            said_code, (_, summary, ended_at) = EXIT_HUNG, self._hang
        log_file = self._plan.log_file(rank)
        return WorkerEnd(
            rank=rank,
            host=self._plan.node.host,
            pid=process.pid or 0,
            exit_code=code,
            ended_at=ended_at,
            told_at=told_at,
            told=frozenset(told),
            said_code=said_code,
            summary=summary,
            traceback=said["traceback"] if said else tidy_crash(heard.crash()) if heard else "",
            log_file=str(log_file) if log_file else None,
        )


def _ranks_text(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
