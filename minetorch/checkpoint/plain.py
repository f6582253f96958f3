"""What a checkpoint may hold: what `torch.load(weights_only=True)` reads back, no more. Pure.

The state is walked before anything is written. That costs microseconds per entry and touches no tensor's data,
whereas reading back what was written would cost as much again as writing it; and it can name the place of the
culprit, which torch's own refusal (only on reading, perhaps days later) does not.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch

from minetorch.checkpoint.walk import walk
from minetorch.errors import ConfigurationError

_LEAVES = frozenset(
    {type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype, torch.device, torch.layout, torch.Size}
)
_NUMBERS = frozenset({bool, int, float, complex, str, bytes})
_DICTS = frozenset({dict, OrderedDict, Counter})
_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})


def plain_state(state: dict[str, Any]) -> dict[str, Any]:
    """The state as it can be saved: NumPy's scalars become Python's, all else is the very same object.

    Raises:
        ConfigurationError: it holds what could not be read back; the message says where, what, and what to do.
    """
    if type(state) not in _DICTS:
        raise ConfigurationError(f"a checkpoint's state must be a dict, not a {type(state).__name__}")
    plain: dict[str, Any] = _Walk().visit(state, "")
    return plain


def is_sharded(value: object) -> bool:
    """Whether it is a sharded tensor: each rank holds only a part of it.

    By name: to import torch's classes takes a second, and who has such a tensor has imported them. To load with
    `weights_only` does not tell, since torch trusts `DTensor`.
    """
    return any(
        kind.__name__ in ("DTensor", "ShardedTensor") and kind.__module__.startswith("torch.distributed.")
        for kind in type(value).__mro__
    )


def sharded_entry(state: Mapping[Any, Any]) -> str | None:
    """The place of a sharded tensor in a state that was read; None if there is none."""
    for path, value in walk(state):
        if isinstance(value, torch.Tensor) and is_sharded(value):
            return reduce(_join, path, "")
    return None


class _Walk:
    """One walk over a state, which may share objects but not contain itself."""

    def __init__(self) -> None:
        self._done: dict[int, Any] = {}
        self._inside: set[int] = set()

    def visit(self, value: Any, path: str) -> Any:
        kind = type(value)
        if kind in _LEAVES:
            _check_leaf(value, path)
            return value
        if id(value) in self._done:
            return self._done[id(value)]
        if id(value) in self._inside:
            raise ConfigurationError(f"the checkpoint cannot hold {path}: it contains itself")
        self._inside.add(id(value))
        self._done[id(value)] = result = self._visit_object(value, path)
        self._inside.discard(id(value))
        return result

    def _visit_object(self, value: Any, path: str) -> Any:
        kind = type(value)
        if kind in _DICTS:
            return self._visit_dict(value, path)
        if kind in (list, tuple):
            return self._visit_items(value, [f"{path}[{index}]" for index in range(len(value))], path)
        if kind is set:
            return self._visit_items(value, [f"{path}{{…}}"] * len(value), path)
        if kind in _TENSORS:
            self._check_attributes(value, path)
            return value
        if is_sharded(value):
            raise ConfigurationError(
                f"the checkpoint cannot hold {path}: it is a {kind.__name__}, and each rank holds only a part of it. "
                "Sharded state is not supported yet; store a plain tensor, such as its full_tensor()"
            )
        if kind in _trusted_types():
            return value
        return _converted(value, path)

    def _visit_dict(self, value: dict[Any, Any], path: str) -> Any:
        keys = [self.visit(key, f"{path}{{key {key!r}}}") for key in value]
        items = [self.visit(item, _join(path, key)) for key, item in value.items()]
        self._check_attributes(value, path)
        if _same(keys, value.keys()) and _same(items, value.values()):
            return value
        copy = type(value)(zip(keys, items, strict=True))
        if hasattr(value, "__dict__"):
            copy.__dict__.update(vars(value))  # OrderedDict._metadata of a module's state
        return copy

    def _visit_items(self, value: Any, paths: list[str], path: str) -> Any:
        items = [self.visit(item, where) for item, where in zip(value, paths, strict=True)]
        return value if _same(items, value) else type(value)(items)

    def _check_attributes(self, value: Any, path: str) -> None:
        """Attributes of tensors and ordered dicts are saved too."""
        for name, item in getattr(value, "__dict__", {}).items():
            if self.visit(item, f"{path}.{name}") is not item:
                raise _refusal(item, f"{path}.{name}", "make it a plain Python value")


def _same(new: Any, old: Any) -> bool:
    return all(a is b for a, b in zip(new, old, strict=True))


def _join(path: str, key: object) -> str:
    if isinstance(key, str):
        return f"{path}.{key}" if path else key
    return f"{path}[{key!r}]"


def _check_leaf(value: Any, path: str) -> None:
    # Pickle writes longer ones with an opcode that weights_only does not read.
    if type(value) is int and value.bit_length() > 2000:
        raise _refusal(value, path, "an int may have up to 2000 bits: store it as a string")


def _trusted_types() -> set[Any]:
    """What the user told torch to read (`torch.serialization.add_safe_globals`)."""
    return {entry[0] if isinstance(entry, tuple) else entry for entry in torch.serialization.get_safe_globals()}


def _converted(value: Any, path: str) -> Any:
    """A NumPy scalar as a Python one; anything else is refused."""
    kind = type(value)
    if kind.__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
        number = value.item()
        if type(number) in _NUMBERS:
            return number
    raise _refusal(value, path, _advice(value))


def _advice(value: Any) -> str:
    kind = type(value)
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
        return "store torch.from_numpy(array), and call .numpy() on it in load_state_dict"
    if isinstance(value, torch.Tensor):
        return "store a plain tensor, or trust its class with torch.serialization.add_safe_globals"
    if isinstance(value, dict | list | tuple | set | frozenset | str | bytes | int | float):
        bases = [base for base in kind.__mro__ if base in _LEAVES or base in (dict, list, tuple, set)]
        return f"store it as a plain {bases[0].__name__ if bases else 'set'}"
    if callable(value):
        return "leave it out of state_dict(), and set it again where the object is made"
    if hasattr(value, "state_dict"):
        return "store its state_dict() in its place"
    return "store tensors, numbers, strings, lists and dicts, from which load_state_dict can make it again"


def _refusal(value: Any, path: str, advice: str) -> ConfigurationError:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return ConfigurationError(
        f"the checkpoint cannot hold {path or 'this state'}: {name}. Only tensors and plain values can be read back "
        f"without running code; {advice}"
    )
