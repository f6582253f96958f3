"""The roll call: where every rank stands, ranks that stand at the same place together. Pure.

Each rank's :class:`Answer` is made on its own node, by :mod:`minetorch_launch.hangs.collect`, and may travel as JSON.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from minetorch_launch.failures.report import tidy_crash
from minetorch_launch.hangs.waits import Frame, Owner, Wait, Waiting, find_wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["Answer", "Place", "Places", "RollCall", "Thread", "read_stacks"]

_THREAD = re.compile(r"(?:Current thread|Thread) 0x([0-9a-f]+)(?: \[(.*)\])? \(most recent call first\):")
_FRAME = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})|\\u([0-9a-f]{4})|\\U([0-9a-f]{8})")
_MOST_STACKS = 8
_MOST_THREADS = 8
_LONGEST_SOURCE = 100
_WIDEST = 48


@dataclass(frozen=True)
class Thread:
    """One thread's stack."""

    name: str
    """As its creator called it, if Python says so (from 3.14)."""

    is_main: bool
    frames: tuple[Frame, ...]
    """Innermost first, without the launcher's own."""


@dataclass(frozen=True)
class Answer:
    """What a rank answered to the roll call, or why it did not."""

    rank: int
    host: str
    pid: int
    threads: tuple[Thread, ...] = ()
    """The main thread first; empty if it did not answer."""

    silence: str = ""
    """Why it did not answer, e.g. ``stopped (T)``."""

    is_held: bool = False
    """Whether it answered to the signal alone: some thread of it does not let go of the interpreter."""

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Answer:
        """The reverse of :meth:`to_dict`."""
        threads = (
            Thread(thread["name"], thread["is_main"], tuple(Frame(**frame) for frame in thread["frames"]))
            for thread in data["threads"]
        )
        return cls(**{**data, "threads": tuple(threads)})


@dataclass(frozen=True)
class Places:
    """Whose code lies where on a node."""

    libraries: tuple[str, ...]
    """Folders of the standard library and of installed packages."""

    trainer: str | None
    """Folder of the package minetorch; None if there is none."""

    here: str
    """The working folder."""

    def owner(self, file: str) -> Owner:
        """Whose code the file ``file`` is."""
        if self.trainer is not None and file.startswith(self.trainer + "/"):
            return "trainer"
        installed = "/site-packages/" in file or "/dist-packages/" in file or file.startswith("<")
        return "library" if installed or any(file.startswith(place + "/") for place in self.libraries) else "user"

    def shown(self, file: str) -> str:
        """The file's path as it is shown."""
        return file.removeprefix(self.here.rstrip("/") + "/")


def read_stacks(text: str, main_thread: int, places: Places, source: Callable[[str, int], str]) -> tuple[Thread, ...]:
    """Read what Python's fault handler has written.

    Args:
        text: one or more dumps of all threads; of each thread the last counts.
        main_thread: the main thread's ident.
        places: whose code lies where.
        source: gives the text of a line of a file; empty if it is not at hand.

    Returns:
        The main thread first; threads that run nothing but the launcher's own code are left out, except it.
    """
    threads: dict[int, Thread] = {}
    ident, name, frames = 0, "", list[Frame]()

    def keep() -> None:
        if ident and (frames or ident == main_thread):
            threads[ident] = Thread(name, ident == main_thread, tuple(frames))

    for line in tidy_crash(text).splitlines():
        if thread := _THREAD.fullmatch(line):
            keep()
            ident, name, frames = int(thread[1], 16), thread[2] or "", []
        elif found := _FRAME.fullmatch(line):
            frames.append(_frame(found[1], found[2], found[3], places, source))
    keep()
    return tuple(sorted(threads.values(), key=lambda thread: not thread.is_main))


def _frame(path: str, line: str, function: str, places: Places, source: Callable[[str, int], str]) -> Frame:
    file = _ESCAPE.sub(lambda escape: chr(int(escape[1] or escape[2] or escape[3], 16)), path)
    number = int(line) if line.isdecimal() else None
    owner = places.owner(file)
    text = source(file, number).strip() if owner == "user" and number is not None else ""
    return Frame(file, number, function, owner, places.shown(file), text)


@dataclass(frozen=True)
class Place:
    """Where some ranks stand, all at the same."""

    answers: tuple[Answer, ...]
    wait: Wait
    frame: Frame | None
    """The innermost line of the user's own code; None without an answer."""

    @property
    def doing(self) -> str:
        """What they do there."""
        return self.wait.name if self.wait.waiting == Waiting.SILENT else f"in {self.wait.name}"

    @property
    def where(self) -> str:
        """The user's line; empty if it is not known."""
        if self.frame is None:
            return ""
        inside = "" if self.frame.function == "<module>" else f" in {self.frame.function}"
        return f"at {self.frame.shown}:{self.frame.line or '?'}{inside}"


class RollCall:
    """The answers of all ranks, of one node or of many.

    Attributes:
        places: where ranks stand, the most crowded place first.
    """

    def __init__(self, answers: Iterable[Answer]) -> None:
        self._answers = sorted(answers, key=lambda answer: answer.rank)
        self._on_many_hosts = len({answer.host for answer in self._answers}) > 1
        together: dict[tuple[object, ...], list[Answer]] = {}
        for answer in self._answers:
            wait, frame = _stands(answer)
            key = (wait, frame.file, frame.line, frame.function) if frame else (wait,)
            together.setdefault(key, []).append(answer)
        places = [Place(tuple(group), *_stands(group[0])) for group in together.values()]
        self.places = tuple(sorted(places, key=lambda place: (-len(place.answers), place.answers[0].rank)))

    @property
    def odd_place(self) -> Place | None:
        """Where those stand who most likely hold up the rest; None without any answer."""
        return min(self.places, key=_blame_order, default=None)

    @property
    def odd_ranks(self) -> tuple[int, ...]:
        """Who most likely holds up the rest: who is silent, else who waits for no other rank, else the fewest."""
        place = self.odd_place
        return tuple(answer.rank for answer in place.answers) if place else ()

    def blame(self) -> str:
        """The roll call in one line."""
        odd = self.odd_place
        if odd is None:
            return "no rank was there to answer"
        hung = "" if odd.wait.waiting == Waiting.SILENT else "hung "
        line = f"{self._label(odd.answers)} {hung}{odd.doing}{_spaced(odd.where)}"
        rest = [place for place in self.places if place is not odd]
        if not rest:
            return line
        waited = {Waiting.SILENT: "", Waiting.TOGETHER: "waited "}.get(rest[0].wait.waiting, "stood ")
        others = f"{self._label(rest[0].answers)} {waited}{rest[0].doing}{_spaced(rest[0].where)}"
        more = sum(len(place.answers) for place in rest[1:])
        return f"{line}, while {others}" + (f" and {more} more elsewhere" if more else "")

    def text(self, because: str = "") -> str:
        """The roll call for a person: who stands where, then one full stack for each place.

        Args:
            because: what it was called for, in a few words.
        """
        count = len(self._answers)
        head = f"roll call of {count} rank{'s' if count != 1 else ''}:"
        lines = [f"minetorch-launch: {because}; {head}" if because else f"minetorch-launch: {head}"]
        labels = [self._label(place.answers) for place in self.places]
        width = min(max(map(len, labels), default=0), _WIDEST)
        wide = min(max((len(place.doing) for place in self.places if place.frame), default=0), _WIDEST)
        for label, place in zip(labels, self.places, strict=True):
            text = place.frame.source if place.frame else ""
            where = place.where + (f": {_cut(text)}" if text else "")
            lines.append(f"  {label:{width}}  {place.doing:{wide}}  {where}".rstrip())
        told = sorted((place for place in self.places if place.answers[0].threads), key=_blame_order)
        for place in told[:_MOST_STACKS]:
            lines += self._stacks(place)
        if len(told) > _MOST_STACKS:
            lines += ["", f"Stacks left out, of other places: {len(told) - _MOST_STACKS}"]
        return "\n".join(lines)

    def _stacks(self, place: Place) -> list[str]:
        first = place.answers[0]
        who = f"{self._label((first,))} (process {first.pid})"
        main, *others = first.threads
        lines = ["", f"{who}, {'main thread' if main.is_main else _name(main)}, most recent call first:"]
        lines += _lines(main)
        alike: dict[tuple[str, ...], list[Thread]] = {}
        for thread in others:
            alike.setdefault(tuple(_lines(thread)), []).append(thread)
        for stack, threads in list(alike.items())[:_MOST_THREADS]:
            name = _name(threads[0]) if len(threads) == 1 else f"{len(threads)} more threads"
            lines += [f"{self._label((first,))}, {name}:", *stack]
        if len(alike) > _MOST_THREADS:
            left = sum(map(len, list(alike.values())[_MOST_THREADS:]))
            lines.append(f"{self._label((first,))}: {left} more threads, left out here")
        return lines

    def _label(self, answers: Sequence[Answer]) -> str:
        word = "rank " if len(answers) == 1 else "ranks "
        if not self._on_many_hosts:
            return word + _runs([answer.rank for answer in answers])
        by_host: dict[str, list[int]] = {}
        for answer in answers:
            by_host.setdefault(answer.host, []).append(answer.rank)
        return word + ", ".join(f"[{host}:{_runs(ranks)}]" for host, ranks in by_host.items())


def _stands(answer: Answer) -> tuple[Wait, Frame | None]:
    if not answer.threads:
        return Wait(f"does not answer: {answer.silence or 'not known why'}", Waiting.SILENT), None
    wait, frame = find_wait(answer.threads[0].frames)
    if answer.is_held and len(answer.threads) > 1 and wait.waiting > Waiting.ALONE:
        # Who waits for other ranks lets go of the interpreter: what the others wait for is in another thread.
        wait = Wait(f"{wait.name}, another thread holds the interpreter", Waiting.ALONE)
    return wait, frame


def _blame_order(place: Place) -> tuple[int, int, int]:
    return place.wait.waiting, len(place.answers), place.answers[0].rank


def _runs(ranks: Sequence[int]) -> str:
    """``0, 2, 5-7``: three and more in a row are cut short."""
    rows: list[list[int]] = []
    for rank in sorted(ranks):
        if rows and rank == rows[-1][-1] + 1:
            rows[-1].append(rank)
        else:
            rows.append([rank])
    return ", ".join(f"{row[0]}-{row[-1]}" if len(row) > 2 else ", ".join(map(str, row)) for row in rows)


def _lines(thread: Thread) -> list[str]:
    return [
        f'  File "{frame.shown}", line {frame.line or "?"} in {frame.function}'
        + (f"\n    {_cut(frame.source)}" if frame.source else "")
        for frame in thread.frames
    ] or ["  (in the launcher's own code, before or after the script)"]


def _name(thread: Thread) -> str:
    return f"thread {thread.name}" if thread.name else "another thread"


def _spaced(text: str) -> str:
    return f" {text}" if text else ""


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SOURCE else text[: _LONGEST_SOURCE - 1] + "…"
