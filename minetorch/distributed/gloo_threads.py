"""Lets gloo's threads finish the last collective before its group is destroyed or the process ends.

A collective returns before its thread has released the callers' objects, and the thread needs the GIL for that. If the
main thread destroys the group at this moment (or DDP's reducer, which holds the group), it waits for the thread without
releasing the GIL, and both wait for ever. On a busy machine, this happened to one in five scripts that destroyed their
group right after the last step. If Python is finalizing at this moment, the thread aborts the process.
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
    """Release the GIL until gloo's threads are idle. Returns at once if there are none.

    torch gives these threads a name. A thread counts as idle if it sleeps at several looks in a row, since it could
    have taken the GIL between them.
    """
    if sys.platform != "linux":
        time.sleep(_LOOK_SECONDS * _LOOKS)
        return
    idle, end = 0, time.monotonic() + _MOST_SECONDS
    while idle < _LOOKS and time.monotonic() < end and (states := _states()):
        idle = 0 if "R" in states else idle + 1
        time.sleep(_LOOK_SECONDS)


def _states() -> str:
    """The state of each of gloo's threads, as one letter from /proc."""
    states = ""
    for task in os.listdir("/proc/self/task"):  # noqa: PTH208 - a thousand threads make a thousand Paths
        with suppress(OSError), open(f"/proc/self/task/{task}/stat") as file:
            name, _, rest = file.read().partition(") ")
            if name.endswith(_THREAD):
                states += rest[:1]
    return states
