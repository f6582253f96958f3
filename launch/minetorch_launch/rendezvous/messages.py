"""The messages between the nodes of a round: reports to the leader, orders from the leader.

Each message is a frozen dataclass, and is sent as JSON: ``{"WorkersFailed": {"node": 1}}``. Bytes from another process
never raise an exception here: a message that is unknown or malformed becomes None.
"""

from __future__ import annotations

import json
import types
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

PROTOCOL = 2
"""Number of this set of messages and of the store's keys; nodes with another number do not join."""

T = TypeVar("T")


@dataclass(frozen=True)
class WorkersFailed:
    """A worker of this node failed, so that all workers of the job have to stop."""

    node: int


@dataclass(frozen=True)
class WorkersStopped:
    """All workers of this node have stopped; the evidence tells how each of them exited."""

    node: int
    evidence: dict[str, Any]


@dataclass(frozen=True)
class WorkersSucceeded:
    """All workers of this node exited with code 0, or saved and stopped early."""

    node: int
    stopped_early: bool


@dataclass(frozen=True)
class StopRequested:
    """A signal told this node's launcher to stop."""

    node: int
    signum: int


@dataclass(frozen=True)
class Preempted:
    """This node received a preemption warning."""

    node: int
    signum: int


@dataclass(frozen=True)
class StacksRequested:
    """A user asked for the stacks of all workers (SIGQUIT)."""

    node: int


@dataclass(frozen=True)
class Stacks:
    """The stacks of this node's workers, with the number of the request in `DumpStacks`."""

    node: int
    request: int
    stacks: list[Any]


@dataclass(frozen=True)
class NodeLost:
    """A node left, or its pulse stopped. Made by the leader's round."""

    node: int


@dataclass(frozen=True)
class NodeArrived:
    """A node waits to take part, and there is room for it. Made by the leader's round."""


@dataclass(frozen=True)
class StopWorkers:
    """Stop all workers now."""

    reason: str
    kind: Literal["failure", "hang", "membership"]
    hang: dict[str, Any] | None = None


@dataclass(frozen=True)
class SaveAndStop:
    """The membership changes: let the workers save, then stop them."""

    reason: str


@dataclass(frozen=True)
class Shutdown:
    """A launcher was told to stop: end the job."""

    signum: int
    host: str


@dataclass(frozen=True)
class ForwardSignal:
    """Pass a preemption warning on to all workers."""

    signum: int
    host: str


@dataclass(frozen=True)
class DumpStacks:
    """Send the stacks of all workers."""

    request: int


@dataclass(frozen=True)
class StackSummary:
    """Show a summary of all stacks on the node whose user asked for it."""

    text: str
    for_node: int


@dataclass(frozen=True)
class Decision:
    """The end of this round: restart after a failure, rejoin after a change of membership, or end the job."""

    kind: Literal["restart", "rejoin", "end"]
    reason: str = ""
    report: dict[str, Any] | None = None
    failures: int = 0
    """Failures so far in this launch, this one included."""

    reached: int | None = None
    """Highest step of any rank in this round; None if that is not known."""

    began: int | None = None
    """Step that the round began at; None if that is not known."""


@dataclass(frozen=True)
class Finish:
    """All workers of all nodes have succeeded."""

    stopped_early: bool = False


Report = (
    WorkersFailed
    | WorkersStopped
    | WorkersSucceeded
    | StopRequested
    | Preempted
    | StacksRequested
    | Stacks
    | NodeLost
    | NodeArrived
)
Order = StopWorkers | SaveAndStop | Shutdown | ForwardSignal | DumpStacks | StackSummary | Decision | Finish

_KINDS: dict[str, type[Report | Order]] = {kind.__name__: kind for kind in (*get_args(Report), *get_args(Order))}


def to_json(message: Report | Order) -> str:
    """The message as JSON, for :func:`from_json`."""
    return json.dumps({type(message).__name__: vars(message)})


def from_json(text: Any) -> Report | Order | None:
    """The message that :func:`to_json` wrote; None for anything else."""
    data = parse(text)
    if not isinstance(data, dict) or len(data) != 1:
        return None
    (name, content), *_ = data.items()
    return build(_KINDS[name], content) if name in _KINDS else None


def parse(text: Any) -> Any:
    """The value that the JSON ``text`` holds; None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None


def build(kind: type[T], content: object) -> T | None:
    """An instance of the dataclass ``kind``; None unless ``content`` has its fields, with values of their types."""
    if not isinstance(content, dict):
        return None
    hints, required = _schema(kind)  # type: ignore[arg-type]
    is_complete = required <= content.keys() <= hints.keys()
    if not is_complete or not all(_fits(value, hints[name]) for name, value in content.items()):
        return None
    return kind(**content)


@cache
def _schema(kind: type) -> tuple[dict[str, Any], set[str]]:
    """The types of a dataclass's fields, and the names of those without a default."""
    return get_type_hints(kind), {field.name for field in fields(kind) if field.default is MISSING}


def _fits(value: object, hint: Any) -> bool:
    if type(value) is hint:
        return True
    origin = get_origin(hint)
    if origin is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    return origin is not None and isinstance(value, origin)
