"""What a drawer is.

A drawer of your own takes ten lines:

```python
class PrintDrawer(minetorch.Drawer):
    def scalars(self, values, graph, x):
        for curve, y in values.items():
            print(f"{graph}/{curve}: {y} at {x}")


Trainer(..., drawer=["matplotlib", PrintDrawer()])
```
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    import numpy as np
    import numpy.typing as npt

    from minetorch.drawers.curves import Curves, Mark


class RunStore(Protocol):
    """The files of one run: as much of the checkpoint store as drawers and the log need."""

    @property
    def url(self) -> str:
        """The place, for display: without passwords."""
        ...

    @property
    def is_local(self) -> bool:
        """Whether `local_path` works."""
        ...

    def local_path(self, name: str = "") -> Path:
        """Where a file stands on this machine's disk (local stores only)."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file."""
        ...

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError where there is none."""
        ...

    def write(self, name: str, data: bytes) -> object:
        """Replace a file at once: a reader sees the old content or the new, never a part."""
        ...

    def create_open(self, name: str) -> BinaryIO:
        """Create a file that must not exist yet, open for writing (local stores only)."""
        ...

    def upload(self, local_path: Path, name: str) -> object:
        """Copy a file of this machine into the store."""
        ...

    def list(self, prefix: str = "") -> Sequence[str]:
        """The names of the files that begin with `prefix`."""
        ...

    def delete(self, name: str) -> object:
        """Remove a file."""
        ...


class Drawer(ABC):
    """The base of every drawer. Only `scalars` must be written; the rest is there for those who need it.

    Only rank 0 has drawers. An exception from any method never stops the training: it is reported
    once, and the drawer is tried again, and brought up to date by `restore`. All methods are called by the
    training thread, which waits for them.
    """

    @abstractmethod
    def scalars(self, values: Mapping[str, float], graph: str, x: float) -> None:
        """Add one point to some curves of a graph.

        Args:
            values: y by the name of its curve; may be NaN or infinite.
            graph: the graph's name, fit to be a file name.
            x: the epoch, unless the hook that draws chose another x.
        """

    # The hooks below are meant to be empty: a drawer overrides those it needs.

    def check(self, store: RunStore) -> None:  # noqa: B027
        """Raise ConfigurationError if this drawer cannot draw for a run with these files; called on every rank."""

    def bind(self, store: RunStore, code: str) -> None:  # noqa: B027
        """Learn where to draw; called once, before anything else.

        Args:
            store: the files of this run.
            code: the name of the run.
        """

    def restore(self, curves: Curves) -> None:  # noqa: B027
        """Forget everything drawn so far for this run, and draw the points of `curves` instead."""

    def name_x(self, graph: str, name: str) -> None:  # noqa: B027
        """Learn what x counts on a graph, where that is not the epoch."""

    def mark(self, mark: Mark) -> None:  # noqa: B027
        """Learn that something happened to the run, such as that it was resumed."""

    def image(self, pixels: npt.NDArray[np.uint8], name: str, x: float) -> None:  # noqa: B027
        """Show a picture or a figure. It is not in the record, and so `restore` does not bring it back.

        Args:
            pixels: shape (height, width, 3), RGB.
            name: the picture's name, fit to be a file name.
            x: as in `scalars`.
        """

    def histogram(self, values: npt.NDArray[np.float64], name: str, x: float) -> None:  # noqa: B027
        """Show how values are distributed. It is not in the record, as images.

        Args:
            values: shape (values,), finite, at least one.
            name: its name, fit to be a file name.
            x: as in `scalars`.
        """

    def flush(self) -> None:  # noqa: B027
        """Make what was drawn visible to others; called at the end of each epoch."""

    def close(self) -> None:  # noqa: B027
        """Draw the final state and let go of everything. Later calls may follow, and start again."""


def generation(store: RunStore) -> int:
    """Which start of the run may write to this store, counted from 1; 0 where nobody counts."""
    return int(getattr(store, "generation", 0))
