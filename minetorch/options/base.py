"""What dataclasses of options have in common: each checks itself, with an error that says what an option may be."""

from __future__ import annotations

import sys
from typing import Any

from minetorch.errors import ConfigurationError, in_brief

MAXIMUM_BITS = 63


class Options:
    """The base class of dataclasses whose `__post_init__` checks the fields."""

    def _check_count(self, name: str, *, optional: bool = False) -> None:
        value = getattr(self, name)
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value.bit_length() > MAXIMUM_BITS:
            self._refuse(name, "a whole number from 1" + (", or None" if optional else ""))

    def _check_positive(self, name: str, value: Any) -> None:
        if value is None:
            return
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= sys.float_info.max:
            self._refuse(name, "a number above 0, or None")

    def _check_choice(self, name: str, choices: tuple[Any, ...]) -> None:
        value = getattr(self, name)
        if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in choices):
            self._refuse(name, " or ".join(map(repr, choices)))

    def _refuse(self, name: str, allowed: str) -> None:
        given = self._as_written(f"{name}={in_brief(getattr(self, name))}")
        raise ConfigurationError(f"{given} is not allowed: {name} must be {allowed}.")

    def _as_written(self, option: str) -> str:
        """The option as a script writes it, for messages."""
        return f"{type(self).__name__}({option})"
