"""Calls the roll on this node: asks each worker for its stacks, and /proc about those that do not answer.

A worker is asked in words first. One that does not answer is in C code that holds the interpreter; it answers
to a signal, whose handler needs no interpreter. The signal's default action would kill, so it is not sent to a
process that would not take it: one that has replaced itself (``exec``) has neither handler nor memory any more.
"""

from __future__ import annotations

import importlib.util
import linecache
import os
import sysconfig
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minetorch_launch.hangs.rollcall import Answer, Places, read_stacks
from minetorch_launch.worker import ROLL_CALL_SIGNAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from minetorch_launch.channel import Heard

__all__ = ["call_roll"]

_ANSWER_SECONDS = 2.0
_LOOK_SECONDS = 0.005
_SIGNAL_BIT = 1 << (ROLL_CALL_SIGNAL - 1)
_STATES = {"R": "running", "S": "sleeping", "I": "idle", "P": "parked"}


def call_roll(heard: Mapping[int, Heard], host: str, timeout: float = _ANSWER_SECONDS) -> list[Answer]:
    """Ask all workers at once where they are.

    Args:
        heard: the workers of this node by rank, from :meth:`minetorch_launch.channel.Channel.heard`.
        host: this node's name.
        timeout: seconds after which a worker counts as silent; half of them for an answer in words.
    """
    asked = {rank: _Asked(worker) for rank, worker in heard.items()}
    _wait(list(asked.values()), timeout / 2)
    mute = [one for one in asked.values() if not one.is_settled()]
    for one in mute:
        one.send_signal()
    _wait(mute, timeout / 2)
    places = _find_places()
    linecache.checkcache()  # a long launch outlives an edit
    return [_answer(rank, host, asked[rank], places) for rank in sorted(asked)]


class _Asked:
    """A worker that is asked for its stacks.

    Attributes:
        refused: why it was not asked; empty if it was.
    """

    def __init__(self, worker: Heard) -> None:
        self.worker = worker
        self.refused = _why_not_to_ask(worker, _Status.read(worker.pid))
        self._blocking: set[int] | None = None
        if not self.refused:
            worker.memory.empty_stacks()
            worker.ask_for_stacks()

    def send_signal(self) -> None:
        status = _Status.read(self.worker.pid)
        self.refused = _why_not_to_ask(self.worker, status)
        self._blocking = _blocking(self.worker.pid)
        if not self.refused and status is not None and not status.is_pending:
            try:
                os.kill(self.worker.pid, ROLL_CALL_SIGNAL)
            except ProcessLookupError:
                self.refused = "has ended"

    @property
    def is_held(self) -> bool:
        """Whether it has answered to the signal, and not in words."""
        return self._blocking is not None and not self.refused and self.worker.answered != self.worker.asked

    def is_settled(self) -> bool:
        """Whether its stacks are written, or never will be."""
        if self.refused or self.worker.answered == self.worker.asked or self.worker.ended_at is not None:
            return True
        return self._blocking is not None and self._has_handled(self._blocking)

    def _has_handled(self, blocking_before: set[int]) -> bool:
        # While the handler runs, its thread has the signal blocked: there is no other mark of a dump's end.
        status = _Status.read(self.worker.pid)
        if status is None or status.state in "ZX":
            return True
        if status.is_pending or not self.worker.memory.has_stacks():
            return False
        return _blocking(self.worker.pid) <= blocking_before


def _wait(asked: Sequence[_Asked], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not all(one.is_settled() for one in asked) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)


@dataclass(frozen=True)
class _Status:
    """What /proc says of a process's main thread, and of its signals."""

    state: str
    is_caught: bool
    is_pending: bool

    @classmethod
    def read(cls, pid: int) -> _Status | None:
        """None if the process is gone."""
        fields = _fields(f"/proc/{pid}/status")
        if "State" not in fields:
            return None
        pending = _mask(fields, "SigPnd") | _mask(fields, "ShdPnd")
        return cls(fields["State"][:1], bool(_mask(fields, "SigCgt") & _SIGNAL_BIT), bool(pending & _SIGNAL_BIT))


def _why_not_to_ask(worker: Heard, status: _Status | None) -> str:
    if status is None or worker.ended_at is not None:
        return "has ended"
    if status.state in "TtZX":
        return _state(worker.pid, status)
    with suppress(OSError):
        name = os.readlink(f"/proc/{worker.pid}/fd/{worker.stacks_fd}")  # noqa: PTH115 - the name is no path
        if status.is_caught and name.startswith("/memfd:minetorch-stacks"):
            return ""
    command = _text(f"/proc/{worker.pid}/cmdline").replace("\0", " ").strip()
    if not status.is_caught:
        return f"has replaced its process, which now runs: {command}"
    return "has closed the memory that its stacks are written to"


def _state(pid: int, status: _Status) -> str:
    """Why a process that is there says nothing."""
    if status.state == "T":
        return "stopped (T)"
    if status.state == "t":
        return "stopped by a debugger (t)"
    if status.state in "ZX":
        return f"a zombie ({status.state}): it has ended, and nobody has noted it"
    place = _text(f"/proc/{pid}/wchan").strip()
    where = f" in {place}" if place not in ("", "0") else ""
    if status.state == "D":
        return f"in uninterruptible sleep (D){where}"
    blocked = f"; it blocks signal {ROLL_CALL_SIGNAL}" if status.is_pending else ""
    return f"{_STATES.get(status.state, 'in state')} ({status.state}){where}{blocked}"


def _answer(rank: int, host: str, asked: _Asked, places: Places) -> Answer:
    worker, silence = asked.worker, asked.refused
    threads = () if silence else read_stacks(worker.memory.read_stacks(), worker.main_thread, places, linecache.getline)
    if not threads and not silence:
        status = _Status.read(worker.pid)
        silence = _state(worker.pid, status) if status else "has ended"
    return Answer(rank, host, worker.pid, threads, silence, is_held=asked.is_held)


def _blocking(pid: int) -> set[int]:
    """The threads of a process that have the signal blocked."""
    found = set()
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - a thousand threads make a thousand Paths
            if _mask(_fields(f"/proc/{pid}/task/{thread}/status"), "SigBlk") & _SIGNAL_BIT:
                found.add(int(thread))
    return found


def _fields(path: str) -> dict[str, str]:
    lines = (line.partition(":") for line in _text(path).splitlines())
    return {name: value.strip() for name, _, value in lines}


def _mask(fields: Mapping[str, str], name: str) -> int:
    return int(fields.get(name) or "0", 16)


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:  # gone meanwhile
        return ""


def _find_places() -> Places:
    """Whose code lies where; imports none of it."""
    paths = sysconfig.get_paths()
    libraries = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    libraries += [str(Path(__file__).parents[1]), *_folders("torch")]
    real = [str(Path(library).resolve()) for library in libraries]  # a virtual environment may be linked to
    return Places(
        libraries=tuple(dict.fromkeys((*libraries, *real))),
        trainer=next(iter(_folders("minetorch")), None),
        here=str(Path.cwd()),
    )


def _folders(package: str) -> list[str]:
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(package)
        return list(spec.submodule_search_locations or ()) if spec is not None else []
    return []
