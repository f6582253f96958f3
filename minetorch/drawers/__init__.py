"""Drawers: where the curves of a run are seen."""

from minetorch.drawers.curves import Curve, Curves
from minetorch.drawers.drawer import Drawer
from minetorch.drawers.fanout import Drawers, SilentDrawers
from minetorch.drawers.figure import MatplotlibDrawer
from minetorch.drawers.make import make_drawers
from minetorch.drawers.tensorboard import TensorboardDrawer

__all__ = [
    "Curve",
    "Curves",
    "Drawer",
    "Drawers",
    "MatplotlibDrawer",
    "SilentDrawers",
    "TensorboardDrawer",
    "make_drawers",
]
