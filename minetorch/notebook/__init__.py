"""Training in a notebook: `launch` calls a function on several workers, and a view shows the run in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minetorch.lazy import lazily
from minetorch.notebook.cell import CellView
from minetorch.notebook.choose import NOTEBOOK_VARIABLE, cell_view, find_view, is_kernel
from minetorch.notebook.page import Page
from minetorch.notebook.relay import Listener, Relay
from minetorch.notebook.store import ShownStore
from minetorch.notebook.view import View

if TYPE_CHECKING:
    from minetorch.notebook.launching import launch

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
    "launch",
]

__getattr__ = lazily(__name__, {"launch": "launching"})
