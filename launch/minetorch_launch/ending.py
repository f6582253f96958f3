"""Ends a worker process as ``python`` ends: nothing that a script expects at its exit is left out."""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import os
import signal
import sys
import threading
import weakref
from contextlib import suppress
from typing import NoReturn

from minetorch_launch.gloo import let_threads_finish

__all__ = ["end_process"]


def end_process(code: int, *, forked: bool) -> NoReturn:
    """End as ``python`` does: wait for threads, run ``atexit``, free the script's objects, flush.

    A forked worker stops there. Taking torch's 1,000 modules apart, as an interpreter does in the end, would
    copy all the memory that it shares with the fork server, 0.4 s of CPU for each worker; and C's exit
    handlers belong to libraries whose threads did not come along in the fork.
    """
    let_threads_finish()  # one that needs Python when there is none any more aborts the process
    if not forked and code >= 0:
        finalize = ctypes.pythonapi.Py_Exit
        finalize.argtypes, finalize.restype = [ctypes.c_int], None
        finalize(code)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    _flush_files()
    _clear_main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    ctypes.CDLL(None).fflush(None)  # what C code has printed
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _clear_main() -> None:
    """Let go of the script's objects in the interpreter's order, so that each ``__del__`` finds what it needs."""
    sys.modules.pop("__mp_main__", None)
    main = weakref.ref(sys.modules.pop("__main__"))
    gc.collect()
    held = main()
    if held is None:
        return
    # Something outside the script holds on to it. Then its globals go one by one, private names first.
    names = vars(held)
    for private in (True, False):
        for name in list(names):
            if name != "__builtins__" and (name.startswith("_") and not name.startswith("__")) is private:
                names[name] = None
    gc.collect()


def _flush_files() -> None:
    """Write out the files that the script leaves open: freed in a cycle, they may close in the wrong order."""
    for thing in gc.get_objects():
        if isinstance(thing, io.TextIOWrapper | io.BufferedWriter | io.BufferedRandom):
            with suppress(Exception):
                thing.flush()
