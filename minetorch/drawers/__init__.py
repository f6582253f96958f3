"""Drawers: where the curves of a run are seen.

What needs torch is imported when it is first used: the process that paints pictures has no use for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minetorch.lazy import lazily

if TYPE_CHECKING:
    from minetorch.drawers.curves import Curve, Curves, Mark
    from minetorch.drawers.drawer import Drawer
    from minetorch.drawers.fanout import Drawers, SilentDrawers
    from minetorch.drawers.figure import MatplotlibDrawer
    from minetorch.drawers.make import make_drawers
    from minetorch.drawers.sql import SqlDrawer
    from minetorch.drawers.tensorboard import TensorboardDrawer

__all__ = [
    "Curve",
    "Curves",
    "Drawer",
    "Drawers",
    "Mark",
    "MatplotlibDrawer",
    "SilentDrawers",
    "SqlDrawer",
    "TensorboardDrawer",
    "make_drawers",
]

_MODULES = {
    "Curve": "curves",
    "Curves": "curves",
    "Drawer": "drawer",
    "Drawers": "fanout",
    "Mark": "curves",
    "MatplotlibDrawer": "figure",
    "SilentDrawers": "fanout",
    "SqlDrawer": "sql",
    "TensorboardDrawer": "tensorboard",
    "make_drawers": "make",
}


__getattr__ = lazily(__name__, _MODULES)
