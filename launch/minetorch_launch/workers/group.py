"""The worker group: this node's workers in one attempt, from their start to the end of the last one."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from minetorch_launch.exit_codes import EXIT_STOPPED_EARLY
from minetorch_launch.failures.oom import OomCounter
from minetorch_launch.failures.report import ranks_text
from minetorch_launch.failures.worker_exit import WorkerExit
from minetorch_launch.heartbeat import Heartbeat, Phase
from minetorch_launch.plan import LaunchPlan
from minetorch_launch.procfs import handles_signal
from minetorch_launch.stop_signals import STOP_SIGNALS
from minetorch_launch.workers.worker import Worker

GroupEnd = Literal["failed", "succeeded", "stopped early", "stopped by signal"]

_STATUS_SECONDS = 1.0
_STUCK_SECONDS = 3.0


class WorkerGroup:
    """This node's workers in one attempt."""

    def __init__(self, plan: LaunchPlan, say: Callable[[str], None]) -> None:
        self.workers: list[Worker] = []
        self.kill_now = asyncio.Event()
        """Set: a second stop signal came, so that a stop waits no longer."""

        self.stopped_by: int | None = None
        """The preemption signal that killed workers which have no handler for it."""

        self._plan, self._say = plan, say
        self._changed = asyncio.Event()
        self._warned: set[int] = set()
        self._to_warn: dict[int, set[int]] = {}
        self._signals_sent: dict[int, tuple[float, set[int]]] = {}
        self._hang: tuple[int, str, float] | None = None
        self._stop: asyncio.Task[None] | None = None
        self._oom = OomCounter()

    @property
    def ranks(self) -> list[int]:
        """The global ranks."""
        return [worker.rank for worker in self.workers]

    def note_change(self) -> None:
        """A worker has ended, or says that it fails."""
        self._changed.set()

    def heartbeats(self) -> dict[int, Heartbeat]:
        """The last heartbeat by rank; ranks without one are missing."""
        beats = ((worker.rank, worker.heartbeat()) for worker in self.workers)
        return {rank: beat for rank, beat in beats if beat is not None}

    # How the group ends.

    async def wait(self) -> GroupEnd:
        """Wait until all workers have ended well, or one has failed.

        A worker that repeats the error of another rank is no reason to stop that rank, which may be saving something
        and reports its own error soon. After a worker that stopped early the others have ``grace`` seconds to do the
        same.
        """
        deadline: float | None = None
        while True:
            self._changed.clear()
            codes = self._codes()
            if EXIT_STOPPED_EARLY in codes or self._repeats_a_peer(codes):
                deadline = deadline or time.monotonic() + self._plan.options.grace
            is_late = deadline is not None and time.monotonic() >= deadline
            all_ended = None not in codes and not (self._plan.many_nodes and self._repeats_a_peer(codes))
            if all_ended or is_late or (deadline is None and self._has_failed(codes)):
                return self._end(codes)
            with suppress(asyncio.TimeoutError):
                timeout = None if deadline is None else deadline - time.monotonic()
                await asyncio.wait_for(self._changed.wait(), timeout)

    def _codes(self) -> list[int | None]:
        for worker in self.workers:
            if worker.process.exit_code is not None:
                worker.read_last_messages()
        return [worker.code for worker in self.workers]

    def _has_failed(self, codes: Collection[int | None]) -> bool:
        return any(code not in (None, 0, EXIT_STOPPED_EARLY) for code in codes)

    def _repeats_a_peer(self, codes: list[int | None]) -> bool:
        """Whether all that have failed here only repeat another rank's error, which may still be about to report it."""
        failed = [
            worker
            for worker, code in zip(self.workers, codes, strict=True)
            if code not in (None, 0, EXIT_STOPPED_EARLY)
        ]
        return bool(failed) and all(worker.failure and worker.failure["repeats_peer_error"] for worker in failed)

    def _end(self, codes: list[int | None]) -> GroupEnd:
        if EXIT_STOPPED_EARLY in codes:
            return "stopped early"
        if not self._has_failed(codes):
            return "succeeded"
        # A worker that dies of a preemption signal, for want of a handler, was stopped and has not failed.
        died_of = {-code for code in codes if code is not None and code < 0} & self._warned
        if died_of and all(code in (None, 0) or -code in died_of for code in codes):
            self.stopped_by = died_of.pop()
            return "stopped by signal"
        return "failed"

    def have_saved(self) -> bool:
        """Whether all have ended well, and some of them early with their work saved."""
        codes = set(self._codes())
        return EXIT_STOPPED_EARLY in codes and codes <= {0, EXIT_STOPPED_EARLY}

    # Preemption warnings.

    def warn(self, signum: int) -> list[int] | None:
        """Pass a preemption warning on, once, to each worker that has a handler for it, now or as soon as it has one.

        Returns:
            The ranks that got it now; None if this warning has come before.
        """
        if signum in self._warned:
            return None
        self._warned.add(signum)
        self._to_warn[signum] = set(self.ranks)
        return self.warn_pending()[signum]

    def note_warned(self, signum: int) -> None:
        """The sender of a preemption warning has sent it to the workers itself."""
        self._warned.add(signum)

    def warn_pending(self) -> dict[int, list[int]]:
        """Warn the workers that have a handler by now: the ranks that got each signal."""
        told: dict[int, list[int]] = {}
        for signum, pending in self._to_warn.items():
            told[signum] = [
                worker.rank for worker in self.workers if worker.rank in pending and self._warn_one(worker, signum)
            ]
            pending.difference_update(told[signum])
        return told

    def ask_to_save(self) -> bool:
        """Have Trainers save and stop, so that a change of the nodes costs no step; whether there are any."""
        beating = [worker for worker in self.workers if worker.heartbeat() is not None]
        return bool([worker for worker in beating if self._warn_one(worker, signal.SIGUSR2)])

    def _warn_one(self, worker: Worker, signum: int) -> bool:
        if worker.process.exit_code is not None:
            return False
        if signum in STOP_SIGNALS:  # it was sent to be taken: who has no handler ends by it
            return self._send(worker, signum)
        return handles_signal(worker.pid, signum) and worker.process.send_signal(signum)

    # Their end.

    async def stop(self, signum: int = signal.SIGTERM, *, alone: bool = False) -> None:
        """Ask the workers to end, wait for ``grace`` seconds, then kill those that are left.

        Args:
            signum: the signal to ask with.
            alone: a peer is gone, so that those in the middle of a step wait for it in vain.
        """
        if self._stop is None:
            self._stop = asyncio.ensure_future(self._stop_all(signum, alone=alone))
        await asyncio.shield(self._stop)

    async def _stop_all(self, signum: int, *, alone: bool) -> None:
        for worker in self.workers:
            # A worker that says that it fails is ending, and may be saving something.
            if worker.failure is None:
                self._send(worker, signum)
        began, said = time.monotonic(), False
        beats = {rank: heartbeat.beats for rank, heartbeat in self.heartbeats().items()}
        while living := [worker for worker in self.workers if worker.process.exit_code is None]:
            waited = time.monotonic() - began
            if waited > self._plan.options.grace or self.kill_now.is_set():
                self._kill(living)
                await asyncio.wait([asyncio.ensure_future(worker.process.ended.wait()) for worker in living])
                return
            if alone and waited > _STUCK_SECONDS:
                # A Trainer that waits for a peer that is gone has nothing to save: its last checkpoint is there.
                self._kill([worker for worker in living if self._is_stuck(worker, beats)])
            if waited > _STATUS_SECONDS and not said:
                said = True
                ranks = ranks_text([worker.rank for worker in living])
                self._say(f"waiting up to {self._plan.options.grace:g} s for {ranks} to end; Ctrl-C kills them at once")
            self._changed.clear()
            kill = asyncio.ensure_future(self.kill_now.wait())
            change = asyncio.ensure_future(self._changed.wait())
            await asyncio.wait([kill, change], timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
            kill.cancel()
            change.cancel()

    def _is_stuck(self, worker: Worker, beats: dict[int, int]) -> bool:
        heartbeat = worker.heartbeat()
        return (
            heartbeat is not None
            and heartbeat.phase in (Phase.TRAINING, Phase.VALIDATING)
            and heartbeat.beats == beats.get(worker.rank)
        )

    def _kill(self, workers: Collection[Worker]) -> None:
        for worker in workers:
            self._send(worker, signal.SIGKILL)

    def _send(self, worker: Worker, signum: int) -> bool:
        if not worker.process.send_signal(signum):
            return False
        self._signals_sent.setdefault(worker.rank, (time.time(), set()))[1].add(signum)
        return True

    def close(self) -> None:
        """Let go of the workers' sockets and memory."""
        for worker in self.workers:
            worker.close()

    # What is known of a failure.

    def mark_hung(self, rank: int, cause: str) -> None:
        """The leader blames this rank for a hang."""
        self._hang = rank, cause, time.time()

    def evidence(self) -> list[WorkerExit]:
        """How each worker has ended. Call it when all have."""
        self._codes()
        oom_kills = self._oom.kills()
        return [self._exit(worker, oom_kills) for worker in self.workers]

    def _exit(self, worker: Worker, oom_kills: int) -> WorkerExit:
        process = worker.process
        signalled_at, signals_sent = self._signals_sent.get(worker.rank, (None, set()))
        log_file = self._plan.log_file(worker.rank)
        seen = WorkerExit.observe(
            rank=worker.rank,
            host=self._plan.host.name,
            pid=worker.pid,
            returncode=process.exit_code,
            ended_at=process.ended_at,
            message=worker.failure,
            signalled_at=signalled_at,
            signals_sent=frozenset(signals_sent),
            crash=worker.memory.read_crash(),
            oom_kills=oom_kills,
            log_file=str(log_file) if log_file else None,
        )
        if process.died_with_server and worker.failure is None:
            return replace(seen, cause="killed together with the fork server, which somebody killed")
        if self._hang is not None and self._hang[0] == worker.rank:
            return seen.hung(*self._hang[1:])
        return seen
