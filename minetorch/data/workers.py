"""DataLoader workers that outlast a signal to the whole job, for the run to finish its batch and save.

A terminal, `timeout`, a batch system or a container's end sends its signal to every process, workers included. Torch's
workers obey a SIGTERM of anybody, and then the Trainer has nothing left to finish with. Here only two things end a
worker: its loader's shutdown, and its parent's death.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import active_children, parent_process, resource_tracker, util
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from torch import distributed as dist
from torch.utils.data import DataLoader

from minetorch.distributed.gloo_threads import let_threads_finish

_PR_SET_PDEATHSIG = 1

SIGNALS = frozenset({signal.SIGTERM, signal.SIGUSR2, signal.SIGINT})
"""What a worker does not obey."""


class OutlastSignals:
    """A `worker_init_fn` that makes its worker deaf to `SIGNALS`, and then calls the user's."""

    def __init__(self, user_init: Callable[[int], None] | None) -> None:
        self.user_init = user_init
        self.held: set[signal.Signals] = set()
        """Signals that were blocked for the start alone."""
        self.die_with_parent = False
        """Whether to be killed with the thread that starts the worker: where that is the parent's main one."""

    def __call__(self, worker: int) -> None:
        """Called in the worker, after torch has set its own handlers."""
        if self.die_with_parent:
            # Torch's worker looks for its parent between two samples only.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            _die_if_orphaned()
        for signum in SIGNALS:
            # A handler that does nothing, since programs that the dataset starts would inherit SIG_IGN.
            signal.signal(signum, _die_if_orphaned)
            signal.siginterrupt(signum, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self.held)
        if self.user_init is not None:
            self.user_init(worker)


def start_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """`iter(loader)`, of a loader whose `worker_init_fn` is `OutlastSignals`."""
    if not loader.num_workers:
        return iter(loader)
    init = loader.worker_init_fn
    assert isinstance(init, OutlastSignals)
    before = set(active_children())
    # A worker takes a moment to come to its handlers. It inherits the mask, and lifts it there.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    init.die_with_parent = sys.platform == "linux" and threading.current_thread() is threading.main_thread()
    init.held = {signum for signum in SIGNALS if signum not in mask}
    try:
        if (loader.multiprocessing_context or multiprocessing).get_start_method() != "fork":
            # Needed by the other ways to start. It lifts the mask when it starts, and would die of SIGUSR2 without.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        elif dist.is_available() and dist.is_initialized():
            # One that lets go of a tensor at the moment of the fork has a lock of the interpreter, which Python before
            # 3.12 leaves taken in the child: that worker would never start.
            let_threads_finish()
        return iter(loader)
    finally:
        for process in set(active_children()) - before:
            # What torch does with a worker that does not end when its loader is shut down.
            process.terminate = process.kill  # type: ignore[method-assign]
            _started(os.getpid()).add(process)
        # Last, since a Ctrl-C that came meanwhile is raised here.
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@functools.cache
def _started(pid: int) -> weakref.WeakSet[BaseProcess]:
    started: weakref.WeakSet[BaseProcess] = weakref.WeakSet()
    # Comes before multiprocessing's own end, which sends SIGTERM and waits.
    util.Finalize(None, _kill, args=(started,), exitpriority=0)
    return started


def _kill(workers: weakref.WeakSet[BaseProcess]) -> None:
    # Torch's handler would make an error of each worker's end, amid the end of the process.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        if worker.is_alive():
            worker.kill()


def _die_if_orphaned(signum: int = signal.SIGKILL, frame: FrameType | None = None) -> None:
    parent = parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(128 + signum)
