"""The fork server: one process that imports torch once, so that workers are forked instead of started.

It never starts a thread or touches a device, which would not survive a fork. Its children take its threads' number,
devices and search path from its environment. It ends when its socket to the launcher closes.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing.resource_tracker
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from minetorch_launch.processes.parent import Parent

HELD_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGQUIT,
)
"""Blocked here, so that a worker gets one that comes early when its script is about to run."""


def main(fd: int, preload: Sequence[str]) -> None:
    """Import ``preload``, then serve the launcher at the other end of socket ``fd`` until it is gone."""
    _start_tracker()
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)  # starting the tracker has unblocked some
    gc.disable()  # looking for garbage takes an eighth of torch's import, and there is none
    _import(preload)
    gc.freeze()  # what workers share is nothing for their collectors, which would copy it by looking
    parent = Parent(fd)
    parent.send({"event": "ready"})
    parent.serve(lambda request, fds: _answer(parent, request, fds))
    os._exit(0)


def _start_tracker() -> None:
    """Start the process that removes the semaphores and shared memory of scripts that are killed, for all workers."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"  # its warnings would follow the failure report, which comes last
    multiprocessing.resource_tracker.ensure_running()
    os.environ.pop("PYTHONWARNINGS") if before is None else os.environ.update(PYTHONWARNINGS=before)


def _import(modules: Sequence[str]) -> None:
    for name in modules:
        try:
            module = importlib.import_module(name)
            if name == "torch.compiler":
                module.disable(_import)  # torch imports its compiler only now: as much again as torch itself
        except ImportError as error:  # the script's own import says it better
            sys.stderr.write(f"minetorch-launch: the fork server cannot import {name}: {error}\n")


def _answer(parent: Parent, request: dict[str, Any], fds: list[int]) -> None:
    with warnings.catch_warnings():
        # Python warns of a fork beside threads; a library that a user preloads may have started some.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        parent.leave()
        _run(request, fds)
    for fd in fds:
        os.close(fd)
    with suppress(OSError):
        parent.report_start(request, pid)


def _run(request: dict[str, Any], fds: list[int]) -> NoReturn:
    if request["op"] == "store":
        from minetorch_launch.processes import store_process

        store_process.main(*fds)
        os._exit(0)
    from minetorch_launch.worker import main

    main.run(fds, forked=True)
