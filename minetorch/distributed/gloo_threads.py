"""Lets gloo's threads be done with the last collective before its group is destroyed or its process ends.

A collective is over for its callers before the thread that has carried it out lets go of what it held of theirs, for
which that thread needs the interpreter. Whoever destroys the group just then (or DDP's reducer, which holds it) waits
for the thread without giving the interpreter away, and both wait for ever. On a busy machine that befell one in five
scripts that destroyed their group right after the last step. And when Python is ending, the thread aborts the process.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

__all__ = ["let_threads_finish"]

_THREAD = "(pt_gloo_runloop"
_LOOK_SECONDS = 0.003
_LOOKS = 3
_MOST_SECONDS = 5.0


def let_threads_finish() -> None:
    """Give the interpreter away until gloo's threads have nothing to do; returns at once where there are none.

    Threads are told by the names that torch gives them; that one does nothing shows in its being asleep at some looks
    in a row, between which it could have had the interpreter.
    """
    if sys.platform != "linux":
        time.sleep(_LOOK_SECONDS * _LOOKS)
        return
    idle, end = 0, time.monotonic() + _MOST_SECONDS
    while idle < _LOOKS and time.monotonic() < end and (states := _states()):
        idle = 0 if "R" in states else idle + 1
        time.sleep(_LOOK_SECONDS)


def _states() -> str:
    """One letter for each of gloo's threads, as /proc has it."""
    states = ""
    for task in os.listdir("/proc/self/task"):  # noqa: PTH208 - a thousand threads make a thousand Paths
        with suppress(OSError), open(f"/proc/self/task/{task}/stat") as file:
            name, _, rest = file.read().partition(") ")
            if name.endswith(_THREAD):
                states += rest[:1]
    return states
