"""What drawers do beside the training: a thread that works when there is something new, and rests in between."""

from __future__ import annotations

import atexit
import threading
import time
from abc import abstractmethod
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from minetorch.drawers.curves import Curves, Mark
from minetorch.drawers.drawer import Drawer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    import numpy.typing as npt

    from minetorch.drawers.drawer import RunStore

    Floats = npt.NDArray[np.float64]

REMOTE_INTERVAL_S = 10.0
"""Seconds from one upload to the next, at least: object stores charge for each."""

# Python code of this thread holds the interpreter's lock, and so costs the training thread up to the time that it
# takes. Working at most this share of the time bounds that cost, up to the longest rest.
_SHARE_OF_TIME = 0.01
_LONGEST_REST_S = 60.0
_REST_AFTER_ERROR_S = 5.0


class Worker:
    """Does a job on a thread of its own whenever it is asked to, with a rest after each time.

    What the job raises comes out of the next `raise_error`; the job is then tried again without being asked.
    """

    def __init__(
        self,
        job: Callable[[], object],
        *,
        interval_s: float,
        cpu_clock: Callable[[], float] = time.thread_time,
        error_rest_s: float = _REST_AFTER_ERROR_S,
    ) -> None:
        """Nothing is started yet.

        Args:
            job: does all that there is to do; called by one thread at a time.
            interval_s: seconds from the first asking to the first job, and of each rest, at least.
            cpu_clock: the seconds that the calling thread has computed.
            error_rest_s: seconds to rest after a failure, at least.
        """
        self.interval_s = interval_s
        self._job = job
        self._cpu_clock = cpu_clock
        self._error_rest_s = error_rest_s
        self._lock = threading.Condition()
        self._at_work = threading.Lock()  # one that was given up may still be at it when the next begins
        self._thread: threading.Thread | None = None
        self._asked = False
        self._closing = False
        self._given_up = False
        self._uninterrupted = threading.Lock()
        self._error: Exception | None = None

    @property
    def is_closing(self) -> bool:
        """Whether this is, or will be, the last time."""
        return self._closing

    def ask(self) -> None:
        """Have the job done soon. Cheap enough to be called at every point."""
        if self._asked and self._thread is not None:
            return
        with self._lock:
            self._asked = True
            if self._thread is None:
                self._start()
            self._lock.notify_all()

    def raise_error(self) -> None:
        """Raise what the job has raised since the last call, if anything."""
        with self._lock:
            error, self._error = self._error, None
        if error is not None:
            raise error

    def finish(self, patience_s: float) -> None:
        """Have the job done a last time if there is need, end the thread, and raise what that raised.

        Raises:
            TimeoutError: it was not done after `patience_s` seconds; what it does outside of `uninterrupted` is left
                to itself.
        """
        if self._asked:
            self.ask()  # what the last finish failed at
        thread, self._thread = self._thread, None
        if thread is None:
            return
        atexit.unregister(self._finish_at_exit)
        with self._lock:
            self._closing = True
            self._error = None  # what it failed at is tried again now
            self._lock.notify_all()
        thread.join(patience_s)
        if thread.is_alive():
            self._given_up = True
            with self._uninterrupted:
                pass
            raise TimeoutError(f"it was not done after {patience_s:.0f} s; what is left is not drawn")
        self.raise_error()

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """A context for a short piece of the job that runs C++ code, which `finish` waits for, however long it takes.

        Python stops a daemon thread at the interpreter's end where it next takes the interpreter's lock. Where that is
        inside C++ code, the process is aborted (SIGABRT), though all work is done.

        Raises:
            TimeoutError: `finish` waits no longer: nothing new may begin.
        """
        with self._uninterrupted:
            if self._given_up:
                raise TimeoutError("the time for the last drawings is over")
            yield

    def _start(self) -> None:
        self._closing = self._given_up = False
        self._thread = threading.Thread(target=self._run, name="minetorch-drawer", daemon=True)
        self._thread.start()
        # A daemon, so that a script that forgets to close can end.
        atexit.register(self._finish_at_exit)

    def _finish_at_exit(self) -> None:
        with suppress(Exception):
            self.finish(_REST_AFTER_ERROR_S)

    def _run(self) -> None:
        rest_s = self.interval_s
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closing, timeout=rest_s)
                self._lock.wait_for(lambda: self._closing or self._asked)
                is_last = self._closing
                if not self._asked:
                    return
                self._asked = False
            rest_s = self._do_job()
            if is_last:
                if self._asked:
                    self._error = None
                    self._do_job()  # it failed, and there will be no other time
                return

    def _do_job(self) -> float:
        """Do it once; returns how many seconds to rest."""
        start, cpu_start = time.monotonic(), self._cpu_clock()
        try:
            with self._at_work:
                self._job()
        except Exception as error:
            with self._lock:
                self._error = error
                self._asked = True
            return max(self.interval_s, self._error_rest_s)
        return self._rest_s(time.monotonic() - start, self._cpu_clock() - cpu_start)

    def _rest_s(self, wall_s: float, cpu_s: float) -> float:
        """Seconds to rest after a job; `interval_s=0` asks for none."""
        if self.interval_s == 0:
            return 0.0
        return max(self.interval_s, min(max(wall_s, cpu_s / _SHARE_OF_TIME), _LONGEST_REST_S))


class News(NamedTuple):
    """Points of one curve."""

    graph: str
    curve: str
    first: int
    """How many points of the curve come before these."""
    points: Floats
    """Shape (2, points): x above y."""


class BackgroundDrawer(Drawer):
    """A drawer that keeps the points as they come, and whose thread draws what is new.

    The thread remembers how far it has come; what it could not draw is still there the next time, so that a failure
    loses nothing. A subclass says in `_draw` how to draw. Only `_draw` touches storages, databases and processes,
    and only from one thread at a time.
    """

    patience_s = 30.0
    """Seconds for which `close` waits for the last drawing at most."""

    def __init__(self, interval_s: float, cpu_clock: Callable[[], float] = time.thread_time) -> None:
        """As `Worker`; where the run is remote, the interval is `REMOTE_INTERVAL_S` at least, unless it is 0."""
        self._store: RunStore | None = None
        self._code = ""
        self._lock = threading.Lock()  # held by whoever reads or changes the record
        self._record = Curves()
        self._worker = Worker(self._draw_if_allowed, interval_s=interval_s, cpu_clock=cpu_clock)

    @abstractmethod
    def _draw(self) -> None:
        """Draw what is in the record and was not drawn yet."""

    def bind(self, store: RunStore, code: str) -> None:
        """Draw for this run."""
        self._store, self._code = store, code
        if not store.is_local and self._worker.interval_s:
            self._worker.interval_s = max(self._worker.interval_s, REMOTE_INTERVAL_S)

    def scalars(self, values: Mapping[str, float], graph: str, x: float) -> None:
        """Keep a point of each curve for the thread."""
        with self._lock:
            for name, y in values.items():
                self._record.add(graph, name, x, y)
        self._worker.ask()

    def name_x(self, graph: str, name: str) -> None:
        """Take the name of the x axis."""
        with self._lock:
            self._record.name_x(graph, name)
        self._worker.ask()

    def mark(self, mark: Mark) -> None:
        """Take a mark."""
        with self._lock:
            self._record.marks.append(mark)
        self._worker.ask()

    def restore(self, curves: Curves) -> None:
        """Draw these points from now on, and no others."""
        copy = curves.copy()
        with self._lock:
            self._record = copy
        self._worker.ask()

    def flush(self) -> None:
        """Raise what the thread could not do. It draws by itself, with rests of `interval_s` and more."""
        self._worker.raise_error()

    def close(self) -> None:
        """Draw the last state, and end the thread. A later point begins anew."""
        self._worker.finish(self.patience_s)

    def _draw_if_allowed(self) -> None:
        check = getattr(self._store, "check", None)
        if check is not None:
            check()
        self._draw()

    def _news(self, record: Curves, drawn: Mapping[tuple[str, str], int]) -> Iterator[News]:
        """The points of each curve after those that are `drawn`. To be called without the lock."""
        with self._lock:
            curves = [(graph, name, curve) for graph in record for name, curve in record[graph].items()]
        for graph, name, curve in curves:
            first = drawn.get((graph, name), 0)
            if len(curve) > first:
                with self._lock:
                    points = curve.since(first)
                yield News(graph, name, first, points)
