"""Draws into TensorBoard event files.

They stand at the root of the run's directory, so that `tensorboard --logdir {alchemistic_directory}`
lists each run under its code and nothing else. For the same reason a curve is a tag, `graph/curve`
(`graph` alone where the curve is named like it): a writer for each curve would make a run of each.
"""

from __future__ import annotations

import importlib.util
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from minetorch.drawers import events
from minetorch.drawers.background import BackgroundDrawer
from minetorch.drawers.event_files import EventFiles, discard, event_files, media_events
from minetorch.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy as np
    import numpy.typing as npt

    from minetorch.drawers.background import News
    from minetorch.drawers.curves import Curves

_MOST_MEDIA_WAITING = 50


class TensorboardDrawer(BackgroundDrawer):
    """Event files that hold the run's record, and its images and histograms up to where it goes on.

    Whenever it begins (at the first point, or at `restore`), it writes a new file with every point of
    the record and then empties the files before it: what was drawn after the checkpoint from which the
    run goes on would overlap with what the run draws now. Images, figures and histograms are in no checkpoint; those
    that were drawn before it are taken over from the older files.

    A run on this machine has one file, which grows. A remote one, which cannot grow, has segments: the newest is
    uploaded anew as long as it is small, the others never again.

    TensorBoard's steps are whole numbers: a graph whose x are not is drawn in steps of a thousandth.
    Wall times are those of drawing: a restored point has the time of its restoration.
    """

    def __init__(self, *, interval_s: float = 1.0, cpu_clock: Callable[[], float] = time.thread_time) -> None:
        """Make a drawer for one run.

        Args:
            interval_s: seconds from one writing to the next, at least; in a remote run 10 at least.
            cpu_clock: the seconds that the calling thread has computed.

        Raises:
            ConfigurationError: TensorBoard is not installed.
        """
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigurationError("drawer='tensorboard' needs TensorBoard: pip install tensorboard")
        super().__init__(interval_s, cpu_clock)
        self._waiting: deque[events.Media] = deque(maxlen=_MOST_MEDIA_WAITING)
        # The thread's own.
        self._shown: Curves | None = None  # the record that the files are of
        self._counts: dict[tuple[str, str], int] = {}  # points of each curve that are in the files
        self._media = 0  # how many images and histograms are in the files, or were lost on the way
        self._in_parts: set[str] = set()  # graphs with an x that is not whole
        self._files: EventFiles | None = None

    def scalars(self, values: Mapping[str, float], graph: str, x: float) -> None:
        """Add a point to the tag of each curve."""
        events.load_tensorboard()
        super().scalars(values, graph, x)

    def restore(self, curves: Curves) -> None:
        """Replace all event files of the run by one that holds these points."""
        events.load_tensorboard()
        with self._lock:
            self._waiting.clear()
        super().restore(curves)

    def image(self, pixels: npt.NDArray[np.uint8], name: str, x: float) -> None:
        """Add a picture to the tag `name`."""
        self._show("image", name, pixels, x)

    def histogram(self, values: npt.NDArray[np.float64], name: str, x: float) -> None:
        """Add a histogram to the tag `name`."""
        self._show("histogram", name, values, x)

    def close(self) -> None:
        """Write what is left, and close the file; a later point would begin a new one."""
        try:
            super().close()
        finally:
            self._let_go()

    def _show(self, kind: str, name: str, value: npt.NDArray[Any], x: float) -> None:
        events.load_tensorboard()
        with self._lock:
            self._record.media += 1
            self._waiting.append(events.Media(self._record.media, kind, name, value, x))
        self._worker.ask()

    def _draw(self) -> None:
        with self._lock:
            record = self._record
        news = list(self._news(record, self._counts if record is self._shown else {}))
        parts = _fractional(news) - self._in_parts
        in_other_steps = any(graph in parts for graph, _ in self._counts)
        if record is not self._shown or in_other_steps or self._files is None or self._files.is_broken:
            self._begin(record)
            return
        self._in_parts |= parts
        self._write(record, news)
        self._files.flush()

    def _begin(self, record: Curves) -> None:
        """Start with every point so far; when all is written, do away with all files before."""
        assert self._store is not None, "bind comes before anything else"
        with self._lock:
            keep = self._media if record is self._shown else record.media - len(self._waiting)
        self._let_go()
        old = event_files(self._store)
        self._files = files = EventFiles(self._store, old)
        self._shown, self._counts, self._media = None, {}, 0
        for event in media_events(self._store, old, keep):
            files.add(event)
            self._media += 1
        news = list(self._news(record, {}))
        self._in_parts = _fractional(news)
        self._write(record, news)
        files.flush()
        for name in old:
            discard(self._store, name)
        self._shown = record

    def _write(self, record: Curves, news: list[News]) -> None:
        assert self._files is not None
        now = time.time()
        for step, values in events.by_step(news, self._in_parts):
            self._files.add(events.of_scalars(step, values, now))
        for one in news:
            self._counts[one.graph, one.curve] = one.first + one.points.shape[1]
        while True:
            with self._lock:
                if not self._waiting or record is not self._record:
                    return
                media = self._waiting.popleft()
            self._files.add(events.of_media(media, self._step(media), now))
            self._media = media.number

    def _step(self, media: events.Media) -> int:
        return round(media.x if media.x.is_integer() else media.x * events.PARTS)

    def _let_go(self) -> None:
        """Close the file, even one that can be written no more."""
        files, self._files = self._files, None
        if files is not None:
            files.close()


def _fractional(news: Iterable[News]) -> set[str]:
    """The graphs with an x that is not whole."""
    return {one.graph for one in news if (one.points[0] % 1 != 0).any()}
