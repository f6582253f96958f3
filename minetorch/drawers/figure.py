"""Draws `graph/<name>.png` with Matplotlib, in a process beside the training."""

from __future__ import annotations

import importlib.util
import time
from collections import deque
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

from minetorch.drawers.background import BackgroundDrawer
from minetorch.drawers.painter import PainterLostError, paint_apart
from minetorch.drawers.thin import thin
from minetorch.errors import ConfigurationError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from minetorch.drawers.curves import Curves
    from minetorch.drawers.painter import Picture
    from minetorch.drawers.picture import Scale

_SCALES = ("auto", "log", "linear")
_MOST_IMAGES_WAITING = 50
_MOST_LOSSES = 3


class _State(NamedTuple):
    """What a picture shows, as far as it can change."""

    record: int
    points: int
    x_name: str
    marks: int


class MatplotlibDrawer(BackgroundDrawer):
    """One PNG per graph, drawn anew when the graph has changed, and the newest of each image in `images/`.

    A thread has a process paint (see `painter`), at most every `interval_s` seconds; `close` draws what is left. An
    error is raised by the next `flush` or `close`, and what could not be drawn is drawn later. Histograms are not
    drawn.
    """

    def __init__(
        self,
        *,
        interval_s: float = 3.0,
        scales: Mapping[str, Scale] | None = None,
        y_names: Mapping[str, str] | None = None,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """Make a drawer for one run.

        Args:
            interval_s: seconds from one drawing to the next, at least; 0 to draw at once.
            scales: "log", "linear" or "auto" by the graph's name; "auto" is log where y is all positive, spans more
                than two decades, and higher is not better.
            y_names: what the y axis of a graph is called, with its unit, such as `{"speed": "samples per second"}`;
                the graph's name by default.
            cpu_clock: the seconds that the calling thread has computed: a slow storage is no cost.

        Raises:
            ConfigurationError: Matplotlib is not installed, or a scale is none.
        """
        if importlib.util.find_spec("matplotlib") is None:
            raise ConfigurationError("drawer='matplotlib' needs Matplotlib: pip install matplotlib")
        super().__init__(interval_s, cpu_clock)
        self._scales = dict(scales or {})
        self._y_names = dict(y_names or {})
        for scale in self._scales.values():
            if scale not in _SCALES:
                raise ConfigurationError(unknown_name("scale", scale, _SCALES))
        self._restores = 0  # tells one record from the next
        self._drawn: dict[str, _State] = {}
        self._images: deque[tuple[str, npt.NDArray[np.uint8]]] = deque(maxlen=_MOST_IMAGES_WAITING)
        self._losses = 0
        self._must_load = self._is_loaded = False

    def restore(self, curves: Curves) -> None:
        """Draw these points from now on; the pictures change at the next drawing."""
        with self._lock:
            self._restores += 1
        super().restore(curves)

    def image(self, pixels: npt.NDArray[np.uint8], name: str, x: float) -> None:
        """Write `images/<name>.png` over the one before."""
        with self._lock:
            self._images.append((name, pixels))
        self._worker.ask()

    def flush(self) -> None:
        """Raise what the thread could not do."""
        if self._must_load:
            # On this thread, which starts DataLoader workers: one that is forked while another thread is amid an
            # import waits for ever at its own import of the same module.
            from minetorch.drawers.picture import load_matplotlib

            load_matplotlib()
            self._must_load, self._is_loaded = False, True
        super().flush()

    def close(self) -> None:
        """Draw the last state, and end the thread."""
        try:
            super().close()
        except TimeoutError:
            left, graphs = len(self._changed()), len(self._drawn.keys() | {*self._record})
            raise TimeoutError(
                f"{left} of {graphs} pictures do not show the last state, since there was no time left after "
                f"{self.patience_s:.0f} s"
            ) from None

    def _draw(self) -> None:
        changed = self._changed()
        for graph, picture in zip(changed, self._painted([self._picture(graph) for graph in changed]), strict=True):
            self._write(f"graph/{graph}.png", picture)
            self._drawn[graph] = changed[graph]
        while True:
            with self._lock:
                if not self._images:
                    return
                name, pixels = self._images[0]
            self._write(f"images/{name}.png", _png(pixels))
            with self._lock:
                if self._images and self._images[0][1] is pixels:
                    self._images.popleft()

    def _changed(self) -> dict[str, _State]:
        """The graphs to draw, in the order of their names."""
        with self._lock:
            record, marks = self._record, len(self._record.marks)
            states = {
                graph: _State(self._restores, sum(map(len, record[graph].values())), record.x_name(graph), marks)
                for graph in sorted(record)
            }
        return {graph: state for graph, state in states.items() if self._drawn.get(graph) != state}

    def _picture(self, graph: str) -> Picture:
        with self._lock:
            points = {name: curve.to_numpy() for name, curve in self._record[graph].items()}
            x_name = self._record.x_name(graph)
            places = {mark.x(x_name) for mark in self._record.marks if mark.kind == "resume"}
        curves = {name: thin(curve) for name, curve in points.items()}
        options: dict[str, Any] = {
            "x_name": x_name,
            "y_name": self._y_names.get(graph, ""),
            "code": self._code,
            "resumes": sorted(place for place in places if place is not None),
            "scale": self._scales.get(graph, "auto"),
        }
        return graph, curves, options

    def _painted(self, pictures: Sequence[Picture]) -> Iterator[bytes]:
        """The pictures, by a process; at the end of the training, or where no process can be had, by this thread."""
        if not pictures:
            return
        # At the end nobody is held up, and a process of low priority could take long to come to its turn.
        if self._losses < _MOST_LOSSES and not self._worker.is_closing:
            try:
                yield from paint_apart(pictures, give_up=lambda: self._worker.is_closing)
                return
            except PainterLostError:
                if not self._worker.is_closing:
                    self._losses += 1
                    raise
        if not (self._worker.is_closing or self._is_loaded):
            self._must_load = True
            raise PainterLostError("no process can be had that paints; this one will")
        for graph, curves, options in pictures:
            with self._worker.uninterrupted():
                from minetorch.drawers.picture import paint

                picture = paint(graph, curves, **options)
            yield picture

    def _write(self, name: str, data: bytes) -> None:
        assert self._store is not None, "bind comes before anything else"
        self._store.write(name, data)


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    picture = BytesIO()
    Image.fromarray(pixels).save(picture, format="png")
    return picture.getvalue()
