"""What a worker does that a notebook has launched."""

from __future__ import annotations

import linecache
import os
import pickle
from collections.abc import Callable, Mapping
from typing import Any

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
        import cloudpickle

        self._name = getattr(fn, "__qualname__", None) or repr(fn)
        self._cells = dict(cells)
        self._all_ranks = all_ranks
        # What the launcher's report calls the command.
        self.__module__, self.__qualname__ = getattr(fn, "__module__", None) or "__main__", self._name
        try:
            self._pickled = bytes(cloudpickle.dumps((fn, args)))
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
        import cloudpickle

        __tracebackhide__ = True
        linecache.cache.update(self._cells)
        fn, args = pickle.loads(self._pickled)
        result = fn(*args)
        if not self._all_ranks and os.environ["RANK"] != "0":
            return None
        try:
            return bytes(cloudpickle.dumps(result))
        except Exception as error:
            raise ConfigurationError(
                f"what {self._name} returned cannot be sent back: {type(error).__name__}: {error}. "
                "Return plain values, such as trainer.metrics."
            ) from error
