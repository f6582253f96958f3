"""Finds where a run that was told to show itself in a notebook can do so."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from minetorch.console.bars import NotebookBar, has_widgets
from minetorch.notebook.cell import CellView
from minetorch.notebook.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Mapping

    from minetorch.notebook.view import View

NOTEBOOK_VARIABLE = "MINETORCH_NOTEBOOK"
"""Set by `minetorch.notebook.launch` for its workers: where the kernel listens."""


def find_view(environ: Mapping[str, str]) -> View | None:
    """The view of the kernel that has started this worker, or of this process if it is a kernel; None elsewhere."""
    if environ.get(NOTEBOOK_VARIABLE):
        return Relay(environ[NOTEBOOK_VARIABLE])
    return cell_view() if is_kernel() else None


def cell_view() -> CellView:
    """A view in this kernel's cell, with the notebook's own bar if ipywidgets is installed."""
    return CellView(NotebookBar if has_widgets() else None)


def is_kernel() -> bool:
    """Whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None
