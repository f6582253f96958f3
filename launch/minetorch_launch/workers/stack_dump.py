"""Asks the workers of this node for their stacks, and /proc about those that do not answer.

A worker is first asked over its link, where a thread of it writes the stacks. A worker that does not answer is in C
code that holds the interpreter; it gets a signal, whose handler needs no interpreter. Without a handler the signal
would end the process, so a process that has replaced itself (``exec``), or has closed the memory, does not get it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import linecache
import os
import sysconfig
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from minetorch_launch import procfs
from minetorch_launch.hangs.shared_memory import STACK_SIGNAL
from minetorch_launch.hangs.stack_summary import CodeOwners, StackSnapshot, read_stacks
from minetorch_launch.workers.worker import Worker

_POLL_INTERVAL = 0.005
_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "in uninterruptible sleep",
    "I": "idle",
    "T": "stopped",
    "t": "stopped by a debugger",
    "Z": "a zombie, which its parent has not collected",
}


async def dump_stacks(workers: Sequence[Worker], host: str, seconds: float = 2.0) -> list[StackSnapshot]:
    """Ask all workers of this node for their stacks; each has ``seconds`` to answer, half of it over its link."""
    requests = [_Request(worker) for worker in workers]
    await _settle(requests, seconds / 2)
    silent = [request for request in requests if not request.is_settled()]
    for request in silent:
        request.send_signal()
    await _settle(silent, seconds / 2)
    owners = _find_owners()
    linecache.checkcache()  # a file may have been edited since the last time
    return [request.snapshot(host, owners) for request in requests]


async def _settle(requests: Sequence[_Request], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not all(request.is_settled() for request in requests) and time.monotonic() < deadline:
        await asyncio.sleep(_POLL_INTERVAL)


class _Request:
    """One worker that is asked for its stacks."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._blocking_before: set[int] | None = None  # not None: the signal was sent
        self._refusal = _why_not_to_ask(worker)
        if not self._refusal:
            worker.memory.empty_stacks()
            worker.ask_for_stacks()

    def send_signal(self) -> None:
        self._refusal = _why_not_to_ask(self._worker)
        self._blocking_before = _threads_that_block(self._worker.pid)
        status = procfs.read_status(self._worker.pid)
        if not self._refusal and status is not None and not status.has_pending(STACK_SIGNAL):
            with suppress(ProcessLookupError):
                os.kill(self._worker.pid, STACK_SIGNAL)

    def is_settled(self) -> bool:
        """Whether the stacks are written, or never will be."""
        worker = self._worker
        if self._refusal or worker.has_answered or worker.has_ended:
            return True
        if self._blocking_before is None or not worker.memory.has_stacks():
            return False
        # The handler's thread blocks the signal while the handler runs: nothing else shows the end of a dump.
        status = procfs.read_status(worker.pid)
        is_pending = status is not None and status.has_pending(STACK_SIGNAL)
        return not is_pending and _threads_that_block(worker.pid) <= self._blocking_before

    def snapshot(self, host: str, owners: CodeOwners) -> StackSnapshot:
        worker, silence = self._worker, self._refusal
        text = "" if silence else worker.memory.read_stacks()
        threads = read_stacks(text, worker.main_thread, owners, linecache.getline)
        if not threads and not silence:
            silence = _state(worker.pid)
        by_signal = self._blocking_before is not None and not silence and not worker.has_answered
        return StackSnapshot(worker.rank, host, worker.pid, threads, silence, holds_interpreter=by_signal)


def _why_not_to_ask(worker: Worker) -> str:
    status = procfs.read_status(worker.pid)
    if worker.has_ended or status is None:
        return "has ended"
    if status.state in "TtZX":
        return _state(worker.pid)
    if not status.catches(STACK_SIGNAL):
        return f"cannot be asked: its process runs {procfs.command_line(worker.pid)}"
    if not procfs.descriptor_target(worker.pid, worker.stacks_fd).startswith("/memfd:minetorch-stacks"):
        return "has closed the memory that its stacks are written to"
    return ""


def _state(pid: int) -> str:
    status = procfs.read_status(pid)
    if status is None:
        return "has ended"
    function = procfs.kernel_function(pid)
    where = f" in {function}" if function and status.is_alive and status.state not in "Tt" else ""
    blocked = f"; it blocks signal {STACK_SIGNAL}" if status.has_pending(STACK_SIGNAL) else ""
    return f"{_STATES.get(status.state, 'in state')} ({status.state}){where}{blocked}"


def _threads_that_block(pid: int) -> set[int]:
    statuses = {thread: procfs.read_status(pid, thread) for thread in procfs.threads(pid)}
    return {thread for thread, status in statuses.items() if status is not None and status.blocks(STACK_SIGNAL)}


def _find_owners() -> CodeOwners:
    """Whose code is where; imports none of it."""
    paths = sysconfig.get_paths()
    libraries = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    libraries += [str(Path(__file__).parents[1]), *_folders("torch")]
    real = [str(Path(library).resolve()) for library in libraries]  # a virtual environment may use links
    return CodeOwners(
        libraries=tuple(dict.fromkeys((*libraries, *real))),
        trainer=next(iter(_folders("minetorch")), None),
        here=str(Path.cwd()),
    )


def _folders(package: str) -> list[str]:
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(package)
        return list(spec.submodule_search_locations or ()) if spec is not None else []
    return []
