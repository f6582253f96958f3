"""A run's files for its drawers, of which the pictures are also shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minetorch.checkpoint.fence import FencedStore

if TYPE_CHECKING:
    from minetorch.checkpoint.fence import Fence
    from minetorch.checkpoint.store import Store
    from minetorch.notebook.view import View


class ShownStore(FencedStore):
    """Shows each PNG that is written, so that a graph is drawn once for the file and for the notebook."""

    def __init__(self, store: Store, fence: Fence, view: View) -> None:
        super().__init__(store, fence)
        self._view = view

    def write(self, name: str, data: bytes) -> None:
        """Replace a file at once, and show it."""
        if name.endswith(".png"):
            self._view.graph(name.rpartition("/")[2].removesuffix(".png"), data)
        super().write(name, data)
