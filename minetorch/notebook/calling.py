"""What a worker does that a notebook has launched."""

from __future__ import annotations

import io
import linecache
import os
import pickle
from collections import ChainMap
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, ClassVar

from minetorch.errors import ConfigurationError


class Call:
    """A call of a notebook's function, which goes to the workers by value."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], cells: Mapping[str, Any], *, all_ranks: bool):
        """Make the function portable.

        Args:
            fn: the function.
            args: its arguments.
            cells: the notebook's cells for `linecache`, so that a traceback can show their lines.
            all_ranks: whether the results of other ranks than 0 are wanted, too.

        Raises:
            ConfigurationError: something that it uses cannot be sent to another process.
        """
        self._name = getattr(fn, "__qualname__", None) or repr(fn)
        self._cells = dict(cells)
        self._all_ranks = all_ranks
        # What the launcher's report calls the command.
        self.__module__, self.__qualname__ = getattr(fn, "__module__", None) or "__main__", self._name
        try:
            self._pickled = _dumps((fn, args))
        except Exception as error:
            raise ConfigurationError(
                f"{self._name} cannot be sent to the workers: {type(error).__name__}: {error}. Make what it uses "
                "(open files, locks, DataLoader iterators, Trainers) inside the function."
            ) from error

    def __call__(self) -> bytes | None:
        """In a worker: call the function.

        Returns:
            What it returned, pickled; None where that is not wanted.

        Raises:
            ConfigurationError: what it returned cannot be pickled.
        """
        __tracebackhide__ = True
        linecache.cache.update(self._cells)
        fn, args = pickle.loads(self._pickled)
        result = fn(*args)
        if not self._all_ranks and os.environ["RANK"] != "0":
            return None
        try:
            return _dumps(result)
        except Exception as error:
            raise ConfigurationError(
                f"what {self._name} returned cannot be sent back: {type(error).__name__}: {error}. "
                "Return plain values, such as trainer.metrics."
            ) from error


def _dumps(value: Any) -> bytes:
    """Pickle a value as `cloudpickle.dumps` does, and keep the file name of all code in it.

    A traceback finds the lines of a cell by that name. cloudpickle 3.1.3 and newer replace it.
    """
    import cloudpickle

    reduce_as_usual = cloudpickle.Pickler.dispatch_table[CodeType]

    def reduce(code: CodeType) -> tuple[Any, ...]:
        return _code_of_file, (code.co_filename, *reduce_as_usual(code))

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table: ClassVar = ChainMap({CodeType: reduce}, cloudpickle.Pickler.dispatch_table)

    buffer = io.BytesIO()
    Pickler(buffer).dump(value)
    return buffer.getvalue()


def _code_of_file(name: str, make: Callable[..., CodeType], args: tuple[Any, ...]) -> CodeType:
    return make(*args).replace(co_filename=name)
