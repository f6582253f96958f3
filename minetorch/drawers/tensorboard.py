"""Draws into TensorBoard event files.

They stand at the root of the run's directory, so that `tensorboard --logdir {alchemistic_directory}`
lists each run under its code and nothing else. For the same reason a curve is a tag, `graph/curve`
(`graph` alone where the curve is named like it): `SummaryWriter.add_scalars` would make a run of each.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minetorch.drawers.curves import Curves
from minetorch.drawers.drawer import Drawer
from minetorch.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minetorch.drawers.drawer import RunStore

_PREFIX = "events.out.tfevents."
_SUFFIX = ".minetorch"  # tells our files, which we may delete, from those that a user's own writer put there
_PARTS = 1000  # steps per unit of x, where x is not whole


class TensorboardDrawer(Drawer):
    """One event file per run, which holds the run's record and nothing else.

    Whenever it begins (at the first point, or at `restore`), it writes a new file with every point of
    the record and then empties the files before it: what was drawn after the checkpoint from which the
    run goes on would overlap with what the run draws now.

    TensorBoard's steps are whole numbers: a graph whose x are not is drawn in steps of a thousandth.
    Wall times are those of drawing: a restored point has the time of its restoration.
    """

    def __init__(self) -> None:
        """Make a drawer for one run.

        Raises:
            ConfigurationError: TensorBoard is not installed.
        """
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigurationError("drawer='tensorboard' needs TensorBoard: pip install tensorboard")
        self._store: RunStore | None = None
        self._curves = Curves()
        self._in_parts: set[str] = set()  # graphs with an x that is not whole
        self._writer: Any = None
        self._directory: Path | None = None  # where the writer writes, while there is one
        self._written = False  # since the last flush

    def bind(self, store: RunStore, code: str) -> None:
        """Draw at the root of this store."""
        self._store = store

    def scalars(self, values: Mapping[str, float], graph: str, x: float) -> None:
        """Add a point to the tag of each curve."""
        redraw = self._writer is None or self._turns_into_parts(graph, x)
        for name, y in values.items():
            self._curves.add(graph, name, x, y)
        if redraw:
            self._begin()
            return
        for name, y in values.items():
            self._write(graph, name, x, y)

    def restore(self, curves: Curves) -> None:
        """Replace all event files of the run by one that holds these points."""
        self._curves = curves.copy()
        self._in_parts = {graph for graph, _, x, _ in curves.points() if not x.is_integer()}
        self._begin()

    def flush(self) -> None:
        """Bring the points to the disk, and to a remote store."""
        if self._writer is None or not self._written:
            return
        self._writer.flush()
        self._upload()
        self._written = False

    def close(self) -> None:
        """Close the event file; a later point would begin a new one."""
        try:
            self.flush()
        finally:
            self._let_go()

    def _turns_into_parts(self, graph: str, x: float) -> bool:
        """Whether x is the first of its graph that is not whole, after others in whole steps."""
        if x.is_integer() or graph in self._in_parts:
            return False
        self._in_parts.add(graph)
        return graph in self._curves

    def _write(self, graph: str, name: str, x: float, y: float) -> None:
        tag = graph if name == graph else f"{graph}/{name}"
        step = round(x * _PARTS) if graph in self._in_parts else int(x)
        self._writer.add_scalar(tag, y, step)
        self._written = True

    def _begin(self) -> None:
        """Start a file with every point so far; when it is complete, do away with all before it."""
        assert self._store is not None, "bind comes before anything else"
        self._let_go()
        old = self._event_files()
        self._open()
        for point in self._curves.points():
            self._write(*point)
        self._writer.flush()
        self._upload()
        self._written = False
        for name in old:
            self._discard(name)

    def _open(self) -> None:
        with warnings.catch_warnings():
            # What TensorBoard and protobuf think of each other's versions is not the user's to mend.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            from torch.utils.tensorboard import SummaryWriter

        assert self._store is not None
        if self._store.is_local:
            self._directory = Path(self._store.local_path())
        else:
            self._directory = Path(tempfile.mkdtemp(prefix="minetorch-tensorboard-"))
        # purge_step: a TensorBoard that is looking on forgets what it has read from the older files.
        self._writer = SummaryWriter(str(self._directory), purge_step=0, max_queue=1000, filename_suffix=_SUFFIX)

    def _upload(self) -> None:
        """Copy the file of a remote run to its store.

        All of it each time: object stores cannot append. It adds up over a long run.
        """
        assert self._store is not None
        assert self._directory is not None
        if not self._store.is_local:
            for path in self._directory.glob(f"{_PREFIX}*{_SUFFIX}"):
                self._store.upload(path, path.name)

    def _event_files(self) -> list[str]:
        """The names of this run's event files that a `TensorboardDrawer` wrote."""
        assert self._store is not None
        if self._store.is_local:
            return [path.name for path in Path(self._store.local_path()).glob(f"{_PREFIX}*{_SUFFIX}")]
        names = self._store.list(_PREFIX)
        return [name for name in names if name.startswith(_PREFIX) and name.endswith(_SUFFIX)]

    def _discard(self, name: str) -> None:
        """Empty an old event file; one that is empty since long is deleted.

        A TensorBoard that is looking on goes from a file to the next at the end of the first. Where the
        first is gone, the loader that it uses for remote storages stays there for ever (seen with 2.21).
        """
        assert self._store is not None
        if self._store.size(name):
            self._store.write(name, b"")
        else:
            self._store.delete(name)

    def _let_go(self) -> None:
        """Close the writer, even one that can write no more."""
        writer, directory = self._writer, self._directory
        self._writer = self._directory = None
        if writer is not None:
            with suppress(Exception):
                writer.close()
        if directory is not None and self._store is not None and not self._store.is_local:
            shutil.rmtree(directory, ignore_errors=True)
