"""The kinds of the values in a checkpoint, checked once when it is read. Pure, and free of torch.

Nothing that reads a checkpoint has to expect a text in the place of a number. Any key may be missing, since older
versions wrote fewer, and unknown keys are ignored, since newer versions may write more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from minetorch.errors import in_brief


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value stands, and the lists and dicts that were looked at before, each with the check that did it.

    A file may hold one list in a million places; looking at it each time would keep a reader busy for days.
    """

    text: str = ""
    seen: set[tuple[int, int]] = field(default_factory=set)

    def within(self, text: str) -> _Place:
        return _Place(text, self.seen)

    def is_new(self, value: Any, check: Check) -> bool:
        """Whether this check has not looked at this value yet. It counts as looked at from now on."""
        key = (id(value), id(check))
        is_new = key not in self.seen
        self.seen.add(key)
        return is_new


Check = Callable[[Any, _Place], None]
"""Takes a value and its place; raises WrongKindError."""

_MOST = 2**63 - 1
_YEAR_9999 = 253_402_300_799.0


class WrongKindError(ValueError):
    """A value is not of the kind that belongs in its place; the message names both."""


def check_state(state: Mapping[str, Any]) -> None:
    """Look at everything in a checkpoint's state that Minetorch itself reads; the states of others are theirs.

    A tensor may be of any class that has a `shape`.

    Raises:
        WrongKindError: a value is of another kind than Minetorch writes.
    """
    _STATE(state, _Place())


def check_curves(header: Any) -> None:
    """Look at the first line of a file of curves; raises as `check_state`."""
    _CURVES(header, _Place())


def check_start(values: Any) -> None:
    """Look at the fields of a `history.Start`; raises as `check_state`."""
    _START(values, _Place("start"))


def _refuse(value: Any, place: _Place, wanted: str) -> NoReturn:
    shown = in_brief(value) if isinstance(value, str | bytes | int | float | None) else f"a {type(value).__name__}"
    raise WrongKindError(f"{place.text or 'it'} is {shown}, not {wanted}")


def _anything(value: Any, place: _Place) -> None:
    pass


def _text(value: Any, place: _Place) -> None:
    if not isinstance(value, str):
        _refuse(value, place, "text")


def _flag(value: Any, place: _Place) -> None:
    if not isinstance(value, bool):
        _refuse(value, place, "True or False")


def _count(value: Any, place: _Place) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
        _refuse(value, place, "a count")


def _integer(value: Any, place: _Place) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        _refuse(value, place, "a whole number")


def _plain(value: Any, place: _Place) -> None:
    if not isinstance(value, str | float | None) and (not isinstance(value, int) or abs(value) > _MOST):
        _refuse(value, place, "a plain value")


def _option(value: Any, place: _Place) -> None:
    """An option of an optimizer's group, as `OptimizerState` keeps it."""
    check = _PLAIN_VALUES if isinstance(value, list | tuple) else _plain
    check(value, place)


def _number(value: Any, place: _Place) -> None:
    if not isinstance(value, float) and (not isinstance(value, int) or abs(value) > _MOST):
        _refuse(value, place, "a number")


def _finite(value: Any, place: _Place) -> None:
    _number(value, place)
    if not math.isfinite(value):
        _refuse(value, place, "a finite number")


def _time(value: Any, place: _Place) -> None:
    _finite(value, place)
    if not 0 <= value <= _YEAR_9999:
        _refuse(value, place, "a time")


def _figure(value: Any, place: _Place) -> None:
    """Whatever `float` takes: hooks may put a tensor with one element, or a text, into `trainer.metrics`."""
    if getattr(value, "shape", None) is not None:
        return
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        _refuse(value, place, "a number")


def _curve(value: Any, place: _Place) -> None:
    shape = tuple(getattr(value, "shape", ()))
    if len(shape) != 2 or shape[0] != 2:
        _refuse(value, place, "a tensor of shape (2, points)")


def _optional(check: Check) -> Check:
    def optional(value: Any, place: _Place) -> None:
        if value is not None:
            check(value, place)

    return optional


def _list_of(check: Check) -> Check:
    def items(value: Any, place: _Place) -> None:
        if not isinstance(value, list | tuple):
            _refuse(value, place, "a list")
        if place.is_new(value, items):
            for index, item in enumerate(value):
                check(item, place.within(f"{place.text}[{index}]"))

    return items


def _row_of(*checks: Check) -> Check:
    def row(value: Any, place: _Place) -> None:
        if not isinstance(value, list | tuple) or len(value) != len(checks):
            _refuse(value, place, f"a list of {len(checks)} values")
        for index, (check, item) in enumerate(zip(checks, value, strict=True)):
            check(item, place.within(f"{place.text}[{index}]"))

    return row


def _dict_of(check: Check, keys: Check = _text) -> Check:
    def named(value: Any, place: _Place) -> None:
        if not isinstance(value, dict):
            _refuse(value, place, "a dict")
        if place.is_new(value, named):
            for key, item in value.items():
                keys(key, place.within(f"a key of {place.text}"))
                check(item, place.within(f"{place.text}[{in_brief(key)}]"))

    return named


def _fields(**checks: Check) -> Check:
    """A dict in which these keys have these kinds."""

    def fields(value: Any, place: _Place) -> None:
        if not isinstance(value, dict):
            _refuse(value, place, "a dict")
        for name, check in checks.items():
            if name in value:
                check(value[name], place.within(f"{place.text}.{name}".lstrip(".")))

    return fields


_PLAIN_VALUES = _list_of(_plain)

_START = _fields(
    time=_time,
    host=_text,
    world_size=_count,
    generation=_count,
    checkpoint=_optional(_text),
    epoch=_count,
    step=_count,
    steps_lost=_optional(_count),
    down_s=_optional(_finite),
    load_s=_finite,
    ended=_optional(_text),
)

_MARKS = _list_of(_row_of(_text, _finite, _count, _time))

_CURVES = _fields(
    graphs=_list_of(_row_of(_text, _list_of(_row_of(_text, _count)))),
    x_names=_dict_of(_text),
    marks=_MARKS,
    media=_count,
    history=_list_of(_START),
)

_DATA = _fields(
    unit=_text, samples=_optional(_count), count=_optional(_count), order=_text, sampler=_text, seed=_integer
)

_STATE = _fields(
    state_dict=_fields(),
    optimizer=_fields(),
    optimizer_class=_text,
    optimizer_groups=_list_of(
        _fields(parameters=_list_of(_text), requires_grad=_list_of(_flag), given=_optional(_dict_of(_option)))
    ),
    epoch=_count,
    progress=_fields(
        epoch=_count,
        epoch_complete=_flag,
        iteration=_count,
        position=_count,
        step=_count,
        samples=_count,
        samples_in_epoch=_count,
        loss_sum=_number,
        loss_sums=_list_of(_number),
        stream=_optional(
            _fields(seen=_list_of(_count), next=_count, states=_list_of(_anything), ended=_list_of(_count))
        ),
        data=_optional(_DATA),
    ),
    metrics=_dict_of(_figure, keys=_anything),
    lowest_train_loss=_figure,
    lowest_val_loss=_figure,
    statable=_dict_of(_anything),
    plugins=_dict_of(_anything),
    virtual_shards=_count,
    random=_list_of(_fields(python=_list_of(_anything), numpy=_list_of(_anything))),
    drawer=_fields(
        graphs=_dict_of(_dict_of(_curve)),
        x_names=_dict_of(_text),
        marks=_MARKS,
        media=_count,
    ),
    history=_list_of(_START),
    logs=_list_of(_anything),
)
