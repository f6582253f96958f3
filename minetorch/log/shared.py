"""Warnings that come from several ranks: on the console once, with the number of ranks."""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from minetorch.log.console import ConsoleHandler

SETTLE_S = 1.0
"""Seconds that the first rank with a warning waits for others that have the same."""

MOST = 1000
"""Warnings of a rank that it compares with those of others: each takes memory of the store."""

_END_S = 10.0


class Tally(Protocol):
    """Counters that all ranks share: torch's `Store`."""

    def add(self, key: str, amount: int) -> int:
        """Add to a counter; returns what it is then."""
        ...


@dataclass(frozen=True)
class _Line:
    level: str
    text: str
    key: str
    due: float


class SharedWarnings(logging.Handler):
    """Takes the warnings of this rank, and shows those that no other rank shows.

    The ranks count the occurrences of each text in a store; who counts first waits a moment, and then shows it with
    the number that it finds. A thread does that: the training waits for no other rank. Errors are shown at once, each
    by its rank, since the process may be about to end.
    """

    def __init__(
        self,
        console: ConsoleHandler,
        *,
        rank: int,
        size: int,
        tally: Callable[[], Tally | None],
        settle_s: float = SETTLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """No thread is started yet.

        Args:
            console: where to show.
            rank: this rank.
            size: how many ranks there are.
            tally: gives the counters, or None as long as there are none.
            settle_s: seconds to wait for other ranks.
            clock: seconds.
        """
        super().__init__(logging.WARNING)
        self._console, self._rank, self._size = console, rank, size
        self._find_tally = tally
        self._tally: Tally | None = None
        self._settle_s, self._clock = settle_s, clock
        self._seen: Counter[str] = Counter()
        self._lines: queue.SimpleQueue[_Line | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Show an error, and have the thread see to a warning."""
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        if record.levelno >= logging.ERROR or self._seen.total() >= MOST:
            self._show(record.levelname, text, 1)
            return
        digest = hashlib.sha256(f"{record.levelno} {record.getMessage()}".encode(errors="replace")).hexdigest()[:32]
        self._seen[digest] += 1
        # The second time that a rank says the same is compared with the second time of the others.
        key = f"minetorch-warning/{digest}/{self._seen[digest]}"
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="minetorch-warnings", daemon=True)
            self._thread.start()
        self._lines.put(_Line(record.levelname, text, key, self._clock() + self._settle_s))

    def close(self) -> None:
        """Show what waits, when its time has come."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._lines.put(None)
            thread.join(_END_S)
        super().close()

    def _run(self) -> None:
        mine: list[_Line] = []  # to be shown by this rank, by the time at which they are due
        ending = False
        while mine or not ending:
            line: _Line | None = None
            try:
                wait_s = max(0.0, mine[0].due - self._clock()) if mine else None
                line = self._lines.get(timeout=wait_s)
                ending = ending or line is None
            except queue.Empty:
                first = mine.pop(0)
                self._show(first.level, first.text, self._count(first.key, 0))
            if line is not None and self._count(line.key, 1) == 1:
                mine.append(line)

    def _count(self, key: str, amount: int) -> int:
        """How many ranks have this line, as far as that can be known."""
        try:
            self._tally = self._tally or self._find_tally()
            return 1 if self._tally is None else self._tally.add(key, amount)
        except Exception:  # the store is gone, as at the end of a run that fails: then each rank speaks for itself
            return 1

    def _show(self, level: str, text: str, ranks: int) -> None:
        who = f"rank {self._rank}: " if self._rank else ""
        if ranks > 1:
            who = f"all {self._size} ranks: " if ranks >= self._size else f"{ranks} of {self._size} ranks: "
        self._console.acquire()
        try:
            self._console.write(level, who + text)
        except (OSError, ValueError):
            pass  # a console that has gone away
        finally:
            self._console.release()


def torchs_store() -> Tally | None:
    """The store by which the process group has met; None where there is no group."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        return None
    assert dist.group.WORLD is not None
    store: Any = dist.group.WORLD.get_group_store()
    # One of its own: calls on the other may wait long for other ranks, and would keep this one waiting.
    tally: Tally = store.clone()
    return tally


class PythonsWarnings:
    """Python's `warnings` as lines of the log, as long as nobody else has asked for them."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._before: Any = None

    def take(self) -> None:
        """From now on log them."""
        if self._before is None and warnings.showwarning.__module__ in ("warnings", "_py_warnings"):
            self._before = warnings.showwarning
            warnings.showwarning = self._log

    def let_go(self) -> None:
        """Leave them to Python again."""
        if self._before is not None and warnings.showwarning == self._log:
            warnings.showwarning = self._before
        self._before = None

    def _log(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        if file is not None:
            file.write(warnings.formatwarning(message, category, filename, lineno, line))
            return
        self._logger.warning("%s:%d: %s: %s", filename, lineno, category.__name__, message)
