"""Turns the Trainer's `drawer=` into drawers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from minetorch.drawers.drawer import Drawer
from minetorch.drawers.fanout import Drawers, SilentDrawers
from minetorch.drawers.figure import MatplotlibDrawer
from minetorch.drawers.tensorboard import TensorboardDrawer
from minetorch.errors import ConfigurationError, in_brief, unknown_name

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from minetorch.drawers.drawer import RunStore


def _sql(**options: Any) -> Drawer:
    from minetorch.drawers.sql import SqlDrawer  # few runs need it

    return SqlDrawer(**options)


DRAWERS: dict[str, Callable[..., Drawer]] = {
    "matplotlib": MatplotlibDrawer,
    "tensorboard": TensorboardDrawer,
    "sql": _sql,
}
"""The drawers that `Trainer(drawer=...)` takes by name."""


def make_drawers(
    spec: object,
    *,
    store: RunStore,
    code: str,
    current_x: Callable[[], float],
    logger: logging.Logger,
    silent: bool = False,
) -> Drawers:
    """The drawers that `spec` names, bound to a run.

    Args:
        spec: a drawer's name, a `Drawer` (or an object with its methods), a list of either, or None
            or False for no drawer.
        store: the files of the run.
        code: the name of the run.
        current_x: gives x where a hook does not: the current epoch.
        logger: where a failing drawer is reported.
        silent: check `spec`, but draw nothing: for ranks other than 0, so that a wrong one is the
            same error on every rank.

    Raises:
        ConfigurationError: `spec` is none of these, or a drawer's library is not installed.
    """
    drawers = _parse(spec)
    for drawer in drawers:
        if isinstance(drawer, Drawer):
            drawer.check(store)
    if silent:
        return SilentDrawers()
    return Drawers(drawers, store=store, code=code, current_x=current_x, logger=logger)


def _parse(spec: object) -> list[Drawer]:
    if spec is None or spec is False:
        return []
    entries = list(spec) if isinstance(spec, (list, tuple)) else [spec]
    for entry in entries:
        if sum(other is entry or (isinstance(entry, str) and other == entry) for other in entries) > 1:
            raise ConfigurationError(f"drawer={in_brief(spec)} has {in_brief(entry)} twice: give each drawer once")
    return [_parse_entry(entry) for entry in entries]


def _parse_entry(entry: object) -> Drawer:
    if isinstance(entry, str):
        return _by_name(entry)
    if isinstance(entry, type):
        raise ConfigurationError(f"drawer={entry.__name__} is a class: give an instance, drawer={entry.__name__}()")
    if callable(getattr(entry, "scalars", None)):
        return cast("Drawer", entry)
    raise ConfigurationError(
        f"drawer={in_brief(entry)} is no drawer: give one of {_known()}, a minetorch.Drawer, a list of these, or None"
    )


def _by_name(name: str) -> Drawer:
    if name not in DRAWERS:
        raise ConfigurationError(unknown_name("drawer", name, DRAWERS) + " For none, give drawer=None.")
    return DRAWERS[name]()


def _known() -> str:
    return ", ".join(repr(name) for name in DRAWERS)
