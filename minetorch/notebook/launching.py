"""Trains on several workers from a notebook's cell."""

from __future__ import annotations

import contextvars
import importlib.util
import linecache
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from minetorch.errors import ConfigurationError, StoppedEarly, WorkersFailedError
from minetorch.notebook import NOTEBOOK_VARIABLE, Listener, cell_view, is_kernel
from minetorch.notebook.calling import Call
from minetorch_launch import (
    Function,
    LaunchError,
    LaunchOptions,
    StoppedEarlyError,
    StoppedError,
    UsageError,
    WorkerFailedError,
)
from minetorch_launch import launch as launch_workers

Result = TypeVar("Result")

_PRELOAD = ("minetorch.trainer",)
"""What the workers are likely to need, imported once for all of them."""

_CELL_SOURCES_MOST = 4 * 2**20
"""Characters of cells that are sent along, for the workers' tracebacks to show their lines."""


def launch(
    fn: Callable[..., Result],
    *args: Any,
    nproc: int | None = 2,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    max_restarts: int = 0,
    grace_s: float = 30.0,
    returns: Literal["main", "all"] = "main",
) -> Any:
    """Call a function once in each of several worker processes, which together are one world, and wait for it.

    The function, and whatever it uses of the notebook, is sent to the workers by value, so that it may stand in a
    cell. The workers start fresh: what cells have computed reaches them as arguments or by name, copied, and what
    they do to it stays with them. What they print appears below the cell, each line with its rank; what a
    `minetorch.Trainer` in them tells appears as with `in_notebook=True`.

    The notebook's stop button (SIGINT) stops all workers: each gets a `KeyboardInterrupt`, then `grace_s` seconds.

    Args:
        fn: the function; `functools.partial` gives it arguments by name.
        args: its arguments.
        nproc: how many workers; None: one for each visible GPU, or a single one without.
        device: what they compute on; "auto": GPUs if there are any.
        max_restarts: how many times a failure starts all workers anew before it ends the launch.
        grace_s: seconds that a worker has to end by itself once it is told to stop, before it is killed.
        returns: "main": what rank 0 returned; "all": a list of what each rank returned, by rank.

    Returns:
        What the function returned, as `returns` says. It must be possible to pickle it with cloudpickle.

    Raises:
        ConfigurationError: an argument is wrong, or something that `fn` uses cannot be sent to another process.
        WorkersFailedError: a worker failed; the message is a report of which, where and why. No worker is left.
        KeyboardInterrupt: the stop button; no worker is left.
        StoppedEarly: the workers were told to make way, and have saved all their work.
    """
    if returns not in ("main", "all"):
        raise ConfigurationError(f"returns={returns!r} is not allowed: returns must be 'main' or 'all'.")
    if importlib.util.find_spec("cloudpickle") is None:
        raise ConfigurationError("minetorch.notebook.launch needs cloudpickle: pip install 'minetorch[notebook]'")
    call = Call(fn, args, _cells(), all_ranks=returns == "all")
    try:
        options = LaunchOptions(nproc=nproc, device=device, max_restarts=max_restarts, grace=grace_s, preload=_PRELOAD)
        with _shown() as (stream, variables):
            returned = launch_workers(Function(call), options, streams=(stream, stream), env=variables).returned
    except UsageError as error:
        raise ConfigurationError(str(error)) from None
    except StoppedError as error:
        raise KeyboardInterrupt(str(error)) from None
    except StoppedEarlyError:
        raise StoppedEarly from None
    except WorkerFailedError as error:
        raise WorkersFailedError(str(error)) from None
    except LaunchError as error:
        raise WorkersFailedError(f"the workers could not be started: {error}") from None
    results = [None if result is None else pickle.loads(result) for result in returned]
    return results if returns == "all" else results[0]


def _cells() -> dict[str, Any]:
    """The source of each cell that was run, as `linecache` keeps it: no other process can read it from a file."""
    found: dict[str, Any] = {}
    left = _CELL_SOURCES_MOST
    for name, entry in reversed(linecache.cache.items()):
        # Without a time of change: from no file.
        if len(entry) != 4 or entry[1] is not None:
            continue
        left -= entry[0]
        if left < 0:
            break
        found[name] = tuple(entry)
    return found


@contextmanager
def _shown() -> Iterator[tuple[int, dict[str, str]]]:
    """Show the output and the messages of the workers: gives the descriptor and the variables that these need."""
    read_end, write_end = os.pipe()
    # A copy of this context: the kernel would take what another thread prints for the newest cell's.
    run = contextvars.copy_context().run
    printing = threading.Thread(target=run, args=(_print, read_end), name="minetorch-notebook", daemon=True)
    printing.start()
    try:
        if not is_kernel():
            yield write_end, {}
            return
        view = cell_view()
        view.here()
        try:
            with Listener(view) as listener:
                yield write_end, {NOTEBOOK_VARIABLE: listener.place}
        finally:
            view.close()
    finally:
        os.close(write_end)
        printing.join()


def _print(read_end: int) -> None:
    with open(read_end, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            sys.stdout.write(line)
            sys.stdout.flush()
