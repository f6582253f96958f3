"""What a notebook shows of a run: one place in the cell's output that is renewed, however long the run is."""

from minetorch.inline.cell import CellView
from minetorch.inline.choose import NOTEBOOK_VARIABLE, cell_view, find_view, is_kernel
from minetorch.inline.page import Page
from minetorch.inline.relay import Listener, Relay
from minetorch.inline.store import ShownStore
from minetorch.inline.view import View

__all__ = [
    "NOTEBOOK_VARIABLE",
    "CellView",
    "Listener",
    "Page",
    "Relay",
    "ShownStore",
    "View",
    "cell_view",
    "find_view",
    "is_kernel",
]
