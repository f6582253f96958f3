"""Where every rank is, with ranks at the same place together. Pure.

Each rank's `StackSnapshot` is made on its own node, by `minetorch_launch.workers.stack_dump`, and may travel as JSON.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minetorch_launch.hangs.blocking_calls import BlockingCall, Frame, Owner, WaitKind, find_blocking_call

_THREAD = re.compile(r"(?:Current thread|Thread) 0x([0-9a-f]+)(?: \[.*\])? \(most recent call first\):")
_FRAME = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})|\\u([0-9a-f]{4})|\\U([0-9a-f]{8})")
_MAX_STACKS = 8
_MAX_THREADS = 8
_MAX_SOURCE = 100
_MAX_COLUMN = 48


@dataclass(frozen=True)
class Thread:
    """One thread's stack, innermost frame first, without the launcher's own frames."""

    is_main: bool
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class StackSnapshot:
    """The stacks of one rank, or why there are none."""

    rank: int
    host: str
    pid: int
    threads: tuple[Thread, ...] = ()
    """The main thread first; empty if the rank did not answer."""

    silence: str = ""
    """Why it did not answer, e.g. ``stopped (T)``."""

    holds_interpreter: bool = False
    """Whether it answered only to the signal: one of its threads does not release the interpreter."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StackSnapshot:
        """The reverse of `dataclasses.asdict`, also after a way through JSON."""
        threads = ((thread["is_main"], (Frame(**frame) for frame in thread["frames"])) for thread in data["threads"])
        return cls(**{**data, "threads": tuple(Thread(is_main, tuple(frames)) for is_main, frames in threads)})


@dataclass(frozen=True)
class CodeOwners:
    """Whose code is where on a node."""

    libraries: tuple[str, ...]
    """Folders of the standard library and of installed packages."""

    trainer: str | None
    """Folder of the package minetorch, if there is one."""

    here: str
    """The working folder."""

    def owner(self, file: str) -> Owner:
        """Whose code ``file`` is."""
        if self.trainer is not None and file.startswith(self.trainer + "/"):
            return "trainer"
        installed = "/site-packages/" in file or "/dist-packages/" in file or file.startswith("<")
        return "library" if installed or any(file.startswith(folder + "/") for folder in self.libraries) else "user"


def read_stacks(
    text: str, main_thread: int, owners: CodeOwners, source: Callable[[str, int], str]
) -> tuple[Thread, ...]:
    """Read what Python's fault handler has written: dumps of all threads, of which the last of each thread counts.

    The text comes without the launcher's frames; ``source`` gives the text of a line of a file, empty if it is not
    available. The main thread comes first; other threads that run only the launcher's code are left out.
    """
    threads: dict[int, list[Frame]] = {}
    frames: list[Frame] = []
    for line in text.splitlines():
        if thread := _THREAD.fullmatch(line):
            threads[int(thread[1], 16)] = frames = []
        elif found := _FRAME.fullmatch(line):
            frames.append(_frame(found[1], found[2], found[3], owners, source))
    found_threads = (Thread(ident == main_thread, tuple(frames)) for ident, frames in threads.items())
    kept = (thread for thread in found_threads if thread.frames or thread.is_main)
    return tuple(sorted(kept, key=lambda thread: not thread.is_main))


def _frame(path: str, line: str, function: str, owners: CodeOwners, source: Callable[[str, int], str]) -> Frame:
    file = _ESCAPE.sub(lambda escape: chr(int(escape[1] or escape[2] or escape[3], 16)), path)
    number = int(line) if line.isdecimal() else None
    owner = owners.owner(file)
    text = source(file, number).strip() if owner == "user" and number is not None else ""
    return Frame(file, number, function, owner, file.removeprefix(owners.here.rstrip("/") + "/"), text)


@dataclass(frozen=True)
class RankGroup:
    """Ranks that are all at the same place."""

    ranks: tuple[StackSnapshot, ...]
    call: BlockingCall
    frame: Frame | None
    """The innermost line of the user's own code; None without an answer."""

    @property
    def doing(self) -> str:
        """The call in words."""
        return self.call.name if self.call.kind == WaitKind.UNRESPONSIVE else f"in {self.call.name}"

    @property
    def where(self) -> str:
        """The user's line; empty if it is not known."""
        if self.frame is None:
            return ""
        inside = "" if self.frame.function == "<module>" else f" in {self.frame.function}"
        return f"at {self.frame.shown}:{self.frame.line or '?'}{inside}"

    @property
    def blame_order(self) -> tuple[int, int, int]:
        """Lowest for the ranks that most likely hold up the rest: unresponsive, in no collective, or the fewest."""
        return self.call.kind, len(self.ranks), self.ranks[0].rank


def summarize(snapshots: Iterable[StackSnapshot]) -> StackSummary:
    """Group ranks that are at the same place."""
    together: dict[tuple[object, ...], RankGroup] = {}
    for snapshot in sorted(snapshots, key=lambda snapshot: snapshot.rank):
        call, frame = _position(snapshot)
        key = (call, frame.file, frame.line, frame.function) if frame else (call,)
        before = together[key].ranks if key in together else ()
        together[key] = RankGroup((*before, snapshot), call, frame)
    groups = sorted(together.values(), key=lambda group: (-len(group.ranks), group.ranks[0].rank))
    return StackSummary(tuple(groups))


def _position(snapshot: StackSnapshot) -> tuple[BlockingCall, Frame | None]:
    if not snapshot.threads:
        reason = snapshot.silence or "the reason is not known"
        return BlockingCall(f"does not answer: {reason}", WaitKind.UNRESPONSIVE), None
    call, frame = find_blocking_call(snapshot.threads[0].frames)
    if snapshot.holds_interpreter and len(snapshot.threads) > 1 and call.kind > WaitKind.LOCAL:
        # A wait for other ranks releases the interpreter, so another thread of this rank holds it.
        call = BlockingCall(f"{call.name}, another thread holds the interpreter", WaitKind.LOCAL)
    return call, frame


@dataclass(frozen=True)
class StackSummary:
    """The stacks of all ranks, of one node or of many."""

    groups: tuple[RankGroup, ...]
    """The largest first."""

    @property
    def odd_ranks(self) -> tuple[int, ...]:
        """The ranks that most likely hold up the rest; empty without any snapshot."""
        return tuple(snapshot.rank for snapshot in self._by_blame()[0].ranks) if self.groups else ()

    def _by_blame(self) -> list[RankGroup]:
        return sorted(self.groups, key=lambda group: group.blame_order)

    def blame(self) -> str:
        """The summary in one line: the cause of a failure of the first of `odd_ranks`, which it does not name."""
        if not self.groups:
            return "hung; no rank has told where it is"
        odd = self._by_blame()[0]
        line = f"{'' if odd.call.kind == WaitKind.UNRESPONSIVE else 'hung '}{odd.doing} {odd.where}".rstrip()
        if len(odd.ranks) > 1:
            line += f", like {self._label(odd.ranks[1:])}"
        rest = [group for group in self.groups if group is not odd]
        if rest:
            was = "was " if len(rest[0].ranks) == 1 else "were "
            waited = {WaitKind.UNRESPONSIVE: "", WaitKind.COLLECTIVE: "waited "}.get(rest[0].call.kind, was)
            line += f", while {self._label(rest[0].ranks)} {waited}{rest[0].doing} {rest[0].where}".rstrip()
        more = sum(len(group.ranks) for group in rest[1:])
        return line + (f" and {more} more elsewhere" if more else "")

    def text(self, reason: str = "") -> str:
        """The summary for a person: which ranks are where, then one full stack for each place.

        Args:
            reason: why it was made, in a few words (`Stall.line`).
        """
        count = sum(len(group.ranks) for group in self.groups)
        lines = [(f"{reason}; " if reason else "") + f"stack summary of {count} rank{'s' if count != 1 else ''}:"]
        labels = [self._label(group.ranks) for group in self.groups]
        width = min(max(map(len, labels), default=0), _MAX_COLUMN)
        wide = min(max((len(group.doing) for group in self.groups if group.frame), default=0), _MAX_COLUMN)
        for label, group in zip(labels, self.groups, strict=True):
            source = f": {_cut(group.frame.source)}" if group.frame and group.frame.source else ""
            lines.append(f"  {label:{width}}  {group.doing:{wide}}  {group.where}{source}".rstrip())
        with_stacks = [group for group in self._by_blame() if group.frame]
        for group in with_stacks[:_MAX_STACKS]:
            lines += self._stacks(group.ranks[0])
        if len(with_stacks) > _MAX_STACKS:
            lines += ["", f"Stacks of {len(with_stacks) - _MAX_STACKS} more places are left out"]
        return "\n".join(lines)

    def _stacks(self, snapshot: StackSnapshot) -> list[str]:
        label = self._label((snapshot,))
        main, *others = snapshot.threads
        name = "main thread" if main.is_main else "a thread"
        lines = ["", f"{label} (process {snapshot.pid}), {name}, most recent call first:", *_stack(main)]
        alike = Counter(tuple(_stack(thread)) for thread in others)
        for stack, count in list(alike.items())[:_MAX_THREADS]:
            lines += [f"{label}, {'another thread' if count == 1 else f'{count} more threads'}:", *stack]
        left_out = sum(list(alike.values())[_MAX_THREADS:])
        return [*lines, f"{label}: {left_out} more threads are left out"] if left_out else lines

    def _label(self, snapshots: Sequence[StackSnapshot]) -> str:
        word = "rank " if len(snapshots) == 1 else "ranks "
        by_host: dict[str, list[int]] = {}
        for snapshot in snapshots:
            by_host.setdefault(snapshot.host, []).append(snapshot.rank)
        if len({snapshot.host for group in self.groups for snapshot in group.ranks}) == 1:
            return word + _runs(next(iter(by_host.values())))
        return word + ", ".join(f"[{host}:{_runs(ranks)}]" for host, ranks in by_host.items())


def _runs(ranks: Sequence[int]) -> str:
    """``0, 2, 5-7``: three and more in a row are written as a range."""
    rows: list[list[int]] = []
    for rank in sorted(ranks):
        if rows and rank == rows[-1][-1] + 1:
            rows[-1].append(rank)
        else:
            rows.append([rank])
    return ", ".join(f"{row[0]}-{row[-1]}" if len(row) > 2 else ", ".join(map(str, row)) for row in rows)


def _stack(thread: Thread) -> list[str]:
    return [
        f'  File "{frame.shown}", line {frame.line or "?"} in {frame.function}'
        + (f"\n    {_cut(frame.source)}" if frame.source else "")
        for frame in thread.frames
    ] or ["  (in the launcher's own code, before or after the script)"]


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SOURCE else text[: _MAX_SOURCE - 1] + "…"
