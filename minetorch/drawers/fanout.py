"""What hooks see as `trainer.drawer`: it keeps the record and hands every point to every drawer."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import TYPE_CHECKING, Any, SupportsFloat

from minetorch.drawers.curves import STEP, Curves, Mark
from minetorch.drawers.drawer import Drawer
from minetorch.drawers.media import figure_pixels, histogram_values, image_pixels
from minetorch.drawers.points import check_graph, check_values, check_x
from minetorch.errors import ConfigurationError, RunVanishedError, SupersededError

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from minetorch.drawers.drawer import RunStore

_MOST_TROUBLES = 10
"""How many distinct troubles of one drawer are reported."""


class Drawers:
    """The drawers of a run as one, and the record of what they drew.

    A wrong call (a bad name, a value that is no number) is the caller's error and raises. A drawer
    that fails is not: each distinct trouble is reported once through the logger; the drawer is tried again at
    each call, and brought up to date from the record at the next `flush` or `close`.
    """

    def __init__(
        self,
        drawers: Sequence[Drawer],
        *,
        store: RunStore,
        code: str,
        current_x: Callable[[], float],
        logger: logging.Logger,
    ) -> None:
        """Bind the drawers to a run; nothing is written before the first flush or point.

        Args:
            drawers: the drawers, or objects that have some of their methods (`scalars` at least).
            store: the files of the run.
            code: the name of the run.
            current_x: gives x where a hook does not: the current epoch.
            logger: where a failing drawer is reported.

        Raises:
            ConfigurationError: a drawer cannot draw there at all.
        """
        self.curves = Curves()
        self._current_x = current_x
        self._guards = [_Guard(drawer, store, code, logger) for drawer in drawers]

    @property
    def drawers(self) -> tuple[Drawer, ...]:
        """The drawers themselves."""
        return tuple(guard.drawer for guard in self._guards)

    def scalar(self, value: SupportsFloat, graph: str, x: SupportsFloat | None = None) -> None:
        """Add a point to the one curve of a graph, which is named as the graph.

        Args:
            value: y, a number or a tensor without dimensions on any device; may be NaN.
            graph: the graph's name, which must be fit for a file name.
            x: the place on the x axis; the current epoch by default.

        Raises:
            ConfigurationError: a name or a number is none.
        """
        self.scalars({self._known(graph): value}, graph, x)

    def scalars(self, values: Mapping[str, SupportsFloat], graph: str, x: SupportsFloat | None = None) -> None:
        """Add a point to each of some curves of a graph.

        Args:
            values: y by the name of its curve, as in `scalar`.
            graph: the graph's name, which must be fit for a file name.
            x: the place on the x axis; the current epoch by default.

        Raises:
            ConfigurationError: a name or a number is none.
        """
        floats = check_values(values, self._known(graph))
        epoch = float(self._current_x())
        place = epoch if x is None else check_x(x, graph)
        if not floats:
            return
        for name, y in floats.items():
            self.curves.add(graph, name, place, y)
        for guard in self._guards:
            guard.draw("scalars", floats, graph, place)
        if not _within_epoch(place, epoch):
            self._name_x(graph, STEP if place.is_integer() else "x")

    def image(self, value: Any, name: str, x: SupportsFloat | None = None) -> None:
        """Show a picture, in the drawers that can. It is not in the checkpoint, as curves are.

        Args:
            value: a tensor, array or Pillow image of shape (height, width), (height, width, channels) or
                (channels, height, width), with 1, 3 or 4 channels; floats from 0 to 1, or integers from 0 to 255.
            name: the picture's name, fit to be a file name.
            x: as in `scalar`.

        Raises:
            ConfigurationError: it is no picture, or the name or x is none.
        """
        place = self._place(name, x)
        if guards := self._that("image"):
            self._show(guards, "image", image_pixels(value, name), name, place)

    def figure(self, figure: Any, name: str, x: SupportsFloat | None = None) -> None:
        """Show a Matplotlib figure as it is now, as `image` does. The figure stays the caller's, to be closed.

        Args:
            figure: a `matplotlib.figure.Figure`.
            name: the picture's name, fit to be a file name.
            x: as in `scalar`.

        Raises:
            ConfigurationError: it is no figure, or the name or x is none.
        """
        place = self._place(name, x)
        if guards := self._that("image"):
            self._show(guards, "image", figure_pixels(figure, name), name, place)

    def histogram(self, values: Any, name: str, x: SupportsFloat | None = None) -> None:
        """Show how values are distributed, in the drawers that can. They are not in the checkpoint.

        Args:
            values: a tensor, an array or a sequence of numbers, of any shape; NaN and infinite ones are left out.
            name: the histogram's name, fit to be a file name.
            x: as in `scalar`.

        Raises:
            ConfigurationError: they are no numbers, or the name or x is none.
        """
        place = self._place(name, x)
        if guards := self._that("histogram"):
            numbers = histogram_values(values, name)
            if numbers.size:
                self._show(guards, "histogram", numbers, name, place)

    def mark(self, kind: str, epoch: float, step: int) -> None:
        """Record that something happened to the run here, such as "resume"."""
        mark = Mark(kind, float(epoch), int(step), time.time())
        self.curves.marks.append(mark)
        for guard in self._guards:
            guard.draw("mark", mark)

    def flush(self) -> None:
        """Have every drawer show what it has; called at the end of each epoch."""
        for guard in self._guards:
            guard.catch_up(self.curves)
            guard.attempt("flush")

    def close(self) -> None:
        """Have every drawer show its final state and let go of its files and threads."""
        for guard in self._guards:
            guard.catch_up(self.curves)
            guard.attempt("close")

    def closers(self) -> list[Callable[[], object]]:
        """Functions that close the drawers, and do not refer to this object."""
        return [partial(guard.attempt, "close") for guard in self._guards]

    def restore(self, curves: Curves) -> None:
        """Go on from another record: every drawer forgets what it drew and draws that."""
        self.curves = curves
        for guard in self._guards:
            guard.behind = True
            guard.catch_up(curves)

    def state_dict(self) -> dict[str, Any]:
        """The record, as `load_state_dict` takes it."""
        return self.curves.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the record, and every drawer from it."""
        curves = Curves()
        curves.load_state_dict(state_dict)
        self.restore(curves)

    def _known(self, graph: str) -> str:
        """The graph's name, checked the first time."""
        return graph if isinstance(graph, str) and graph in self.curves else check_graph(graph)

    def _place(self, name: str, x: SupportsFloat | None) -> float:
        check_graph(name)
        return float(self._current_x()) if x is None else check_x(x, name)

    def _that(self, method: str) -> list[_Guard]:
        """The drawers that have more than the base's empty method."""
        empty = getattr(Drawer, method)
        return [guard for guard in self._guards if getattr(type(guard.drawer), method, empty) is not empty]

    def _show(self, guards: list[_Guard], method: str, value: npt.NDArray[Any], name: str, x: float) -> None:
        self.curves.media += 1
        for guard in guards:
            guard.show(method, value, name, x)

    def _name_x(self, graph: str, name: str) -> None:
        if self.curves.x_name(graph) in (name, "x"):
            return
        self.curves.name_x(graph, name)
        for guard in self._guards:
            guard.draw("name_x", graph, name)


class SilentDrawers(Drawers):
    """The same surface, drawing nothing: for the ranks other than 0, and for their old hooks."""

    def __init__(self) -> None:
        self.curves = Curves()
        self._guards = []

    def scalar(self, value: SupportsFloat, graph: str, x: SupportsFloat | None = None) -> None:
        """Do nothing: even looking at the value would make a GPU wait."""

    def scalars(self, values: Mapping[str, SupportsFloat], graph: str, x: SupportsFloat | None = None) -> None:
        """Do nothing."""

    def image(self, value: Any, name: str, x: SupportsFloat | None = None) -> None:
        """Do nothing."""

    def figure(self, figure: Any, name: str, x: SupportsFloat | None = None) -> None:
        """Do nothing."""

    def histogram(self, values: Any, name: str, x: SupportsFloat | None = None) -> None:
        """Do nothing."""

    def mark(self, kind: str, epoch: float, step: int) -> None:
        """Do nothing."""

    def restore(self, curves: Curves) -> None:
        """Do nothing."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""


def _within_epoch(x: float, epoch: float) -> bool:
    """Whether x can be counted in epochs: a hook may draw at epoch + index / length."""
    return 0 <= x - epoch <= 1


class _Guard:
    """Keeps a drawer's failures from the training."""

    def __init__(self, drawer: Drawer, store: RunStore, code: str, logger: logging.Logger) -> None:
        self.drawer = drawer
        self.behind = False
        self._place = (store, code)
        self._logger = logger
        self._bound = False
        self._reported: set[str] = set()
        self._bind()

    def draw(self, method: str, *args: object) -> None:
        """Call a method that adds to the picture; where that fails, something is missing there."""
        self._bind()
        if not (self._bound and self.attempt(method, *args)):
            self.behind = True

    def show(self, method: str, *args: object) -> None:
        """Call a method whose effect the record does not hold, and cannot bring back."""
        self._bind()
        if self._bound:
            self.attempt(method, *args)

    def catch_up(self, curves: Curves) -> None:
        """Draw all of the record if something is missing.

        Not at every point: a drawer that fails for an hour would be sent the whole record each time.
        """
        self._bind()
        if self.behind and self._bound:
            self.behind = not self.attempt("restore", curves)

    def attempt(self, method: str, *args: object) -> bool:
        """Call a method if the drawer has it; False where it failed."""
        function = getattr(self.drawer, method, None)
        if function is None:
            return True
        try:
            function(*args)
        except (SupersededError, RunVanishedError):
            return False  # the training itself says so, and stops
        except Exception as error:
            self._report(method, error)
            return False
        return True

    def _bind(self) -> None:
        if self._bound:
            return
        try:
            bind = getattr(self.drawer, "bind", None)
            if bind is not None:
                bind(*self._place)
        except ConfigurationError:
            raise
        except Exception as error:
            self._report("bind", error)
        else:
            self._bound = True

    def _report(self, method: str, error: Exception) -> None:
        trouble = f"{type(error).__name__}: {error}"
        # The same trouble often comes with another number in it: of a request, a port, a temporary file.
        kind = re.sub(r"\b(?=\w*\d)\w+", "#", trouble)
        if kind in self._reported or len(self._reported) == _MOST_TROUBLES:
            return
        self._reported.add(kind)
        self._logger.warning(
            "%s.%s failed: %s. Training goes on; the drawer is tried again, and this is said only once.",
            type(self.drawer).__name__,
            method,
            trouble,
        )
