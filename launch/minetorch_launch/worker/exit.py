"""Ends a worker process as ``python`` ends."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import signal
import sys
import threading
import weakref
from contextlib import suppress
from typing import NoReturn


def end_process(code: int, *, forked: bool) -> NoReturn:
    """End as ``python`` does: wait for threads, run ``atexit``, free the script's objects, flush.

    A forked worker stops there. To finalize torch's 1,000 modules, as the interpreter does at its end, would copy all
    the memory that the worker shares with the fork server: 0.4 s of CPU for each worker. And C's exit handlers belong
    to libraries whose threads did not survive the fork.

    Args:
        code: the exit code; minus n to end by signal n.
        forked: the process was forked from the fork server.
    """
    if not forked and code >= 0:
        sys.exit(code)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
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
    """Free the script's objects in the interpreter's order: files are flushed, and ``__del__`` finds its names.

    The first collection, too, is the interpreter's: it sorts the objects, so that the second one closes a file before
    the buffer that the file writes to.
    """
    gc.collect()
    sys.modules.pop("__mp_main__", None)
    main = weakref.ref(sys.modules.pop("__main__"))
    gc.collect()
    held = main()
    if held is None:
        return
    # Something outside the script refers to it. Then its globals go one by one, private names first.
    names = vars(held)
    for private in (True, False):
        for name in list(names):
            if name != "__builtins__" and (name.startswith("_") and not name.startswith("__")) is private:
                names[name] = None
    gc.collect()
