"""Nodes for the tests of the rendezvous: several in one process, each with store processes of its own."""

import asyncio
import os
import signal
import time
from contextlib import suppress

from benchmarks.membership import StoreProcesses as Forked
from minetorch_launch.rendezvous.many_nodes import ManyNodes
from minetorch_launch.rendezvous.membership import Settings, Timing
from minetorch_launch.validators import Endpoint

QUICK = Timing(pulse=0.1, lost=2.0, first_quiet=0.5, later_quiet=0.3)


class StoreProcesses(Forked):
    """Starts store processes, and knows their pids."""

    def __init__(self):
        super().__init__()
        self.pids = []

    def start(self):
        pid, ours = super().start()
        self.pids.append(pid)
        return pid, ours

    def gone_within(self, seconds):
        end = time.monotonic() + seconds
        while any(map(is_alive, self.pids)) and time.monotonic() < end:
            time.sleep(0.01)
        return not any(map(is_alive, self.pids))

    def kill_all(self):
        """Kill what is left; whether that was nothing."""
        left = [pid for pid in self.pids if is_alive(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        self.pids.clear()
        return not left


class Node:
    """One node of a job.

    Attributes:
        said: the lines that its user has seen.
        pids: of its store processes.
    """

    def __init__(self, processes, port, rank, nodes=(2, 2), **settings):
        self.said, self.pids = [], []
        self._processes = processes
        self.settings = Settings(
            **{
                "endpoint": Endpoint("127.0.0.1", port),
                "rdzv_id": "job",
                "nodes": nodes,
                "host": f"node{rank}",
                "nproc": 2,
                "node_rank": rank,
                "join_timeout": 20.0,
                "version": "1.0",
                "say": self.said.append,
                "timing": QUICK,
                **settings,
            }
        )
        self.rendezvous = None

    async def _start_store(self):
        pid, ours = self._processes.start()
        self.pids.append(pid)
        return ours

    async def open(self):
        self.rendezvous = await ManyNodes.open(self.settings, self._start_store)
        return self

    async def join(self, failures=0):
        if self.rendezvous is None:
            await self.open()
        return await self.rendezvous.join(failures=failures, workers_port=1000 + (self.settings.node_rank or 0))

    async def die(self):
        """End as a machine does that loses its power: nobody gets a farewell."""
        self.signal(signal.SIGKILL)
        await asyncio.sleep(0.05)
        await self.close()

    def signal(self, signum):
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signum)

    async def close(self):
        if self.rendezvous is not None:
            await self.rendezvous.close()


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
