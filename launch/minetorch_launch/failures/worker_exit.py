"""How one worker ended: what the worker reports about its exception, and what the launcher saw.

A worker that fails sends one message. `describe_exception` and `describe_exit` make it inside the worker, where the
exception can still be examined; `WorkerExit.observe` joins it with what the launcher saw of the process. The result
stays one type from there to the screen: it is what a node sends to the leader and what a report shows.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import sys
import time
import traceback
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from minetorch_launch.exit_codes import EXIT_HUNG, EXIT_STOPPED_EARLY, shell_code, signal_name

Kind = Literal["exception", "exit", "crash", "kill", "hang", "lost peer"]
"""``exit`` is a call of sys.exit or os._exit; ``crash`` a signal such as SIGSEGV, ``kill`` any other signal."""

MESSAGE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "time": (int, float),
    "code": int,
    "summary": str,
    "traceback": str,
    "error": str,
    "place": str,
    "secondary": bool,
    "repeats_peer_error": bool,
    "uses_trainer": bool,
}
"""Fields of a worker's failure message and their types, for checking a message that was received."""


_CRASHES = frozenset({"SIGSEGV", "SIGABRT", "SIGFPE", "SIGILL", "SIGBUS"})

# The place in C++ that an error of gloo begins with; torch's monitored_barrier puts a line before it.
_GLOO_PLACE = re.compile(r"^\[[^\]\n]*/gloo/[^\]\n]*:\d+\] ", re.MULTILINE)

# What torch makes of an error in a DataLoader's worker: the traceback, and the message in its last line.
_OF_DATALOADER = re.compile(r"Caught \w+ in (DataLoader worker process \d+)\.\n(?:.*\n)* {2}.*\n(\S.*)")

_MAX_HALF = 1 << 17

_LIBRARY = re.compile(r"/(?:site|dist)-packages/|/lib(?:64)?/python3|^<")
_LAUNCHER = (
    *(os.path.join(os.path.dirname(os.path.dirname(__file__)), part) for part in ("worker", "processes")),  # noqa: PTH118, PTH120
    runpy.__file__,
    "<frozen runpy>",
    "<frozen importlib._bootstrap>",
)


@dataclass(frozen=True)
class WorkerExit:
    """How one worker ended.

    Attributes:
        rank: its global rank; ``host`` and ``pid`` tell where it ran.
        exit_code: as a shell shows it: 128 + n for signal n; None if the process never started.
        time: wall-clock second at which it failed or ended.
        kind: what kind of failure it is; None if it did not fail by itself.
        signal: name of the signal that ended it, if one did.
        cause: one line: the exception, the call of sys.exit, or the signal.
        traceback: of the exception, or the stacks that a fatal signal left.
        error: qualified name of the exception's type; empty if there was none.
        place: ``file:line`` of the innermost line of the script in the traceback.
        repeats_peer_error: whether the exception only repeats that of a rank that reports it itself.
        uses_trainer: whether it had imported minetorch.
        was_signalled: whether the launcher sent it a signal to end it.
        oom_kills: processes that the kernel's out-of-memory killer ended on this node during the attempt.
        log_file: path of the rank's log file, if there is one.
    """

    rank: int
    host: str
    pid: int
    exit_code: int | None
    time: float
    kind: Kind | None = None
    signal: str | None = None
    cause: str = ""
    traceback: str = ""
    error: str = ""
    place: str = ""
    repeats_peer_error: bool = False
    uses_trainer: bool = False
    was_signalled: bool = False
    oom_kills: int = 0
    log_file: str | None = None

    @classmethod
    def observe(
        cls,
        *,
        rank: int,
        host: str,
        pid: int,
        returncode: int | None,
        ended_at: float,
        message: Mapping[str, Any] | None = None,
        signalled_at: float | None = None,
        signals_sent: frozenset[int] = frozenset(),
        crash: str = "",
        oom_kills: int = 0,
        log_file: str | None = None,
    ) -> WorkerExit:
        """Join what the launcher saw with the worker's own message. The other arguments are as the attributes.

        ``returncode`` is minus n for signal n, as `subprocess` gives it, and None if the process never started;
        ``ended_at`` and ``signalled_at`` are wall-clock seconds, the latter of the first of ``signals_sent``, with
        which the launcher asked the worker to end; ``crash`` has the stacks that a fatal signal left.
        """
        said = message or {}
        code: int | None = said.get("code", returncode)
        at = float(said.get("time", ended_at))
        if said:
            failed = code != EXIT_STOPPED_EARLY and (signalled_at is None or at <= signalled_at)
        else:
            by_other_signal = code is not None and code < 0 and -code not in signals_sent
            failed = code not in (None, 0, EXIT_STOPPED_EARLY) and (signalled_at is None or by_other_signal)
        return cls(
            rank=rank,
            host=host,
            pid=pid,
            exit_code=None if code is None else shell_code(code),
            time=at,
            kind=_kind(code or 0, said) if failed else None,
            signal=signal_name(-code) if code is not None and code < 0 else None,
            cause=said.get("summary") or (_cause(code or 0, oom_kills) if failed else ""),
            traceback=said.get("traceback") or crash,
            error=said.get("error", ""),
            place=said.get("place", ""),
            repeats_peer_error=said.get("repeats_peer_error", False),
            uses_trainer=said.get("uses_trainer", False),
            was_signalled=signalled_at is not None,
            oom_kills=oom_kills,
            log_file=log_file,
        )

    @property
    def failed(self) -> bool:
        """Whether the worker failed by itself; False if it finished, or if the launcher ended it."""
        return self.kind is not None

    @property
    def is_secondary(self) -> bool:
        """Whether the worker only lost the connection to another rank, or repeats its error."""
        return self.kind == "lost peer"

    def hung(self, cause: str, at: float) -> WorkerExit:
        """The same worker as the one that the launcher ended because it held up all others."""
        return replace(self, exit_code=EXIT_HUNG, time=at, kind="hang", signal=None, cause=cause, traceback="")


def _kind(code: int, said: Mapping[str, Any]) -> Kind:
    if code < 0:
        return "crash" if signal_name(-code) in _CRASHES else "kill"
    if not said.get("error"):
        return "exit"
    return "lost peer" if said.get("secondary") else "exception"


def _cause(code: int, oom_kills: int) -> str:
    if code == -signal.SIGKILL and oom_kills:
        return "killed by SIGKILL: the kernel's out-of-memory killer ended it"
    if code == -signal.SIGKILL:
        return "killed by SIGKILL (often the kernel's out-of-memory killer: check dmesg)"
    if code < 0:
        return f"killed by {signal_name(-code)}"
    return f"ended with exit code {code} without an exception (os._exit, or exit in a C library)"


def describe_exception(error: BaseException) -> dict[str, Any]:
    """The failure message for an exception that ended the script; see `MESSAGE_FIELDS`. Runs in the worker.

    Removes the launcher's own frames from the exception's traceback.
    """
    error.__traceback__ = _without_launcher_frames(error.__traceback__)
    module, name = type(error).__module__, type(error).__qualname__
    return _message(
        code=-signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1,
        summary=_summary(error),
        traceback="".join(traceback.format_exception(type(error), error, error.__traceback__)),
        error=name if module in ("builtins", "__main__") else f"{module}.{name}",
        place=_place(error.__traceback__),
        secondary=is_secondary(error),
        repeats_peer_error=repeats_peer_error(error),
    )


def describe_exit(error: SystemExit) -> dict[str, Any] | None:
    """The failure message for a call of sys.exit; None if it means success. Runs in the worker."""
    code = error.code
    if code is None or (isinstance(code, int) and code & 0xFF == 0):
        return None
    if isinstance(code, int):
        return _message(code=code & 0xFF, summary=f"called sys.exit({code})")
    return _message(code=1, summary=f"called sys.exit({str(code)!r})")


def _message(**known: Any) -> dict[str, Any]:
    nothing = {"traceback": "", "error": "", "place": "", "secondary": False, "repeats_peer_error": False}
    texts = {name: _shortened(value) for name, value in known.items() if isinstance(value, str)}
    return {"time": time.time(), "uses_trainer": "minetorch" in sys.modules, **nothing, **known, **texts}


def _shortened(text: str) -> str:
    """Leave out the middle of a very long text: an exception may show all its data, and the launcher waits for it."""
    left_out = len(text) - 2 * _MAX_HALF
    if left_out <= 0:
        return text
    return f"{text[:_MAX_HALF]} ({left_out:,} characters left out) {text[-_MAX_HALF:]}"


def is_secondary(error: BaseException) -> bool:
    """Whether ``error`` was raised because another rank is gone or has failed. Runs in the worker.

    What counts is where it was raised: in torch.distributed or its C++ code, or by a Trainer that lost a rank. A
    connection that the script itself uses is none of these, whatever its error says. An exception that was raised
    while such an error was handled counts as one: the script has wrapped it.
    """
    return any(_lost_peer(one) or _marked(one, "repeats_peer_error") for one in _chain(error))


def repeats_peer_error(error: BaseException) -> bool:
    """Whether ``error`` only repeats another rank's error, which that rank reports itself."""
    return any(_marked(one, "repeats_peer_error") for one in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ if error.__suppress_context__ else error.__context__


def _lost_peer(error: BaseException) -> bool:
    distributed = sys.modules.get("torch.distributed")
    dist_error = getattr(distributed, "DistError", None)  # base of the errors of NCCL and of torch's stores
    if dist_error is not None and isinstance(error, dist_error):
        return True
    if _marked(error, "is_lost_peer"):
        return True
    # Gloo raises a plain RuntimeError, also through autograd, or in the script's own frame (Work.wait is C++).
    return type(error) is RuntimeError and (
        _GLOO_PLACE.search(str(error)) is not None or _raised_in(error, distributed)
    )


def _raised_in(error: BaseException, package: types.ModuleType | None) -> bool:
    """Whether the innermost frame of ``error`` is in a file of ``package`` itself, subpackages excluded."""
    *_, innermost = [None, *traceback.walk_tb(error.__traceback__)]
    if innermost is None or package is None or package.__file__ is None:
        return False
    return os.path.dirname(innermost[0].f_code.co_filename) == os.path.dirname(package.__file__)  # noqa: PTH120


def _marked(error: BaseException, attribute: str) -> bool:
    """Whether the exception's type says so itself, as those of minetorch do."""
    return getattr(type(error), attribute, False) is True


def _summary(error: BaseException) -> str:
    """``ValueError: its message``; for a syntax error, whose message begins with the place, the same."""
    lines = traceback.format_exception_only(type(error), error)
    if wrapped := _OF_DATALOADER.search("".join(lines)):
        return f"{wrapped[2]} (in {wrapped[1]})"
    return next((line for line in lines if not line.startswith(" ")), lines[-1]).split("\n")[0]


def _place(trace: types.TracebackType | None) -> str:
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(trace)]
    own = [frame for frame in frames if not _LIBRARY.search(frame[0])]
    return "{}:{}".format(*(own or frames)[-1]) if frames else ""


def _without_launcher_frames(trace: types.TracebackType | None) -> types.TracebackType | None:
    while trace is not None and (
        trace.tb_frame.f_code.co_filename.startswith(_LAUNCHER) or "__tracebackhide__" in trace.tb_frame.f_locals
    ):
        trace = trace.tb_next
    return trace
