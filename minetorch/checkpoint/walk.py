"""The one walk over the state in a checkpoint that was read. Pure, and free of torch.

A file may hold containers that contain one another thousands of levels deep, or in a circle, or many times each. So the
walk does not recurse, and it enters each container once: it takes a time that grows with the file's length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def walk(state: Mapping[Any, Any]) -> Iterator[tuple[Sequence[Any], Any]]:
    """Every value in a state, in order, each container before its parts.

    Yields:
        The keys and indices that lead to the value, and the value. The next step changes the sequence of keys. A
        container that stands in several places has its parts in the first of them alone.
    """
    path: list[Any] = []
    entered = {id(state)}
    levels = [_parts(state)]
    while levels:
        for key, value in levels[-1]:
            path.append(key)
            yield path, value
            if isinstance(value, Mapping | list | tuple) and id(value) not in entered:
                entered.add(id(value))
                levels.append(_parts(value))
                break
            path.pop()
        else:
            levels.pop()
            del path[-1:]


def _parts(container: Mapping[Any, Any] | Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return iter(container.items() if isinstance(container, Mapping) else enumerate(container))
