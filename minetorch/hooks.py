"""The points of a run at which the Trainer calls users' functions, and the calls."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from minetorch.errors import ConfigurationError, in_brief
from minetorch.options.other_trainers import instead_of_hook_point, ours
from minetorch_launch.heartbeat import HeartbeatWriter, Phase

if TYPE_CHECKING:
    from minetorch.context import TrainerState

Function = TypeVar("Function", bound=Callable[..., Any])

HOOK_POINTS: Mapping[str, tuple[str, ...]] = {
    "after_init": (),
    "before_epoch_start": ("epoch",),
    "after_epoch_end": ("epoch", "train_loss", "val_loss"),
    "before_train_iteration_start": ("index", "data"),
    "after_train_iteration_end": ("index", "data", "loss"),
    "before_val_iteration_start": ("index", "data"),
    "after_val_iteration_end": ("index", "data", "loss"),
    "before_checkpoint_persisted": ("names",),
    "after_checkpoint_persisted": ("names", "path"),
    "before_quit": (),
}
"""Each hook point, and its payload: what a hook there may declare by name besides `trainer`."""


def main_only(function: Function) -> Function:
    """Mark a hook or a plugin's method to run on rank 0 only.

    A collective inside it raises `CollectiveError`, since the other ranks would never come to it. The trainer's
    loaders give it the whole data, since nobody else looks at the rest.
    """
    function.__minetorch_main_only__ = True  # type: ignore[attr-defined]
    return function


def is_main_only(function: Callable[..., Any]) -> bool:
    """Whether `function` was marked by `main_only`."""
    return getattr(function, "__minetorch_main_only__", False)


class Hooks:
    """All functions to call, by hook point, in the order in which they were added."""

    def __init__(
        self,
        trainer: TrainerState,
        heartbeat: HeartbeatWriter | None = None,
    ) -> None:
        """No function yet.

        Args:
            trainer: what the functions receive.
            heartbeat: told when functions run that may take their time.
        """
        self._trainer = trainer
        self._heartbeat = heartbeat or HeartbeatWriter()
        self._calls: dict[str, list[Callable[[Mapping[str, Any]], None]]] = {point: [] for point in HOOK_POINTS}

    def add(self, point: str, function: Callable[..., Any], owner: str | None = None) -> None:
        """Call `function` at `point` from now on.

        Args:
            point: one of `HOOK_POINTS`.
            function: receives `trainer` first, and by name whatever else it declares of the point's payload.
            owner: whose it is, for messages; the function's own name where it is None.

        Raises:
            ConfigurationError: no such point, not a function, or it declares what the point does not have.
        """
        if point not in HOOK_POINTS:
            raise ConfigurationError(
                f"There is no hook point {in_brief(point)}{instead_of_hook_point(str(point), HOOK_POINTS)}"
            )
        if not callable(function):
            raise ConfigurationError(
                f"The hook for {point!r} must be a function or a list of functions; {in_brief(function)} was given."
            )
        label = f"hook {owner or getattr(function, '__qualname__', function)!r} at {point!r}"
        wanted = _wanted(function, point, label)
        main = is_main_only(function)
        if main and not self._trainer.is_main:
            return
        call = functools.partial(_call, self._trainer, function, wanted)
        if main and self._trainer.world_size > 1:
            call = functools.partial(self._call_alone, call, label)
        self._calls[point].append(call)

    def add_all(self, hooks: Mapping[str, Any]) -> None:
        """Add the hooks of the Trainer's `hooks` argument: a function or a list of functions a point."""
        for point, functions in hooks.items():
            for function in functions if isinstance(functions, list | tuple) else [functions]:
                self.add(point, function)

    def add_plugin(self, plugin: object) -> None:
        """Add every method of `plugin` that is named after a hook point.

        Raises:
            ConfigurationError: a method looks like a hook point but is none, or there is no hook at all.
        """
        name = type(plugin).__name__
        for method in dir(plugin):
            if method.startswith(("before_", "after_")) and method not in HOOK_POINTS:
                raise ConfigurationError(
                    f"Plugin {name}: There is no hook point {method!r}{instead_of_hook_point(method, HOOK_POINTS)}"
                )
        points = [point for point in HOOK_POINTS if callable(getattr(plugin, point, None))]
        if not points:
            similar = {method: point for method in dir(plugin) if (point := ours(method)) is not None}
            renamed = "; ".join(f"rename {method} to {point}" for method, point in similar.items())
            raise ConfigurationError(
                f"Plugin {in_brief(plugin)} has no method named after a hook point, so it would never be called"
                f"{renamed and f': {renamed}'}. The hook points are {', '.join(HOOK_POINTS)}."
            )
        for point in points:
            self.add(point, getattr(plugin, point), f"{name}.{point}")

    def call(self, point: str, **payload: Any) -> None:
        """Call every function of `point`, in order. An error in one is the run's error."""
        calls = self._calls[point]
        if not calls:
            return
        before = self._heartbeat.enter(Phase.IN_HOOK)
        for call in calls:
            call(payload)
        self._heartbeat.enter(before)

    def any_at(self, point: str) -> bool:
        """Whether `point` has a function. An iteration asks this first, since making the payload takes time."""
        return bool(self._calls[point])

    def _call_alone(self, call: Callable[[Mapping[str, Any]], None], label: str, payload: Mapping[str, Any]) -> None:
        with self._trainer.alone(label):
            call(payload)


def _call(
    trainer: TrainerState, function: Callable[..., Any], wanted: tuple[str, ...] | None, payload: Mapping[str, Any]
) -> None:
    if wanted is None:
        function(trainer, **payload)
    elif wanted:
        function(trainer, **{name: payload[name] for name in wanted})
    else:
        function(trainer)


def _wanted(function: Callable[..., Any], point: str, label: str) -> tuple[str, ...] | None:
    """The payload's names that `function` declares; None for all of them (it takes **kwargs)."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return ()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    known = HOOK_POINTS[point]
    # A hook such as `def hook(epoch)` would get the trainer as `epoch`.
    takes_trainer = (
        parameters and parameters[0].kind is not inspect.Parameter.KEYWORD_ONLY and parameters[0].name not in known
    )
    if not takes_trainer:
        raise ConfigurationError(f"The {label} must take `trainer` as its first parameter.")
    asked = [p for p in parameters[1:] if p.kind is not p.VAR_POSITIONAL]
    for parameter in asked:
        if parameter.name not in known and parameter.default is parameter.empty:
            has = f"{', '.join(map(repr, known))} besides 'trainer'" if known else "nothing but 'trainer'"
            raise ConfigurationError(f"The {label} asks for {parameter.name!r}, but this point has {has}.")
    return tuple(p.name for p in asked if p.name in known and p.kind is not p.POSITIONAL_ONLY)
