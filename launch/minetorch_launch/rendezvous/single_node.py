"""The rendezvous of a job on one node: no store, no port, no second process."""

from __future__ import annotations

import os
from uuid import uuid4

from minetorch_launch.rendezvous.participant import Participant, sort_key
from minetorch_launch.rendezvous.round import Round


class SingleNode:
    """A rendezvous that this node alone takes part in.

    Args:
        address: where the workers' store listens.
    """

    def __init__(self, *, host: str, nproc: int, address: str = "127.0.0.1") -> None:
        self._host, self._nproc, self.address = host, nproc, address
        self._launch_id = uuid4().hex[:12]
        self._rounds = 0

    async def join(self, *, failures: int, workers_port: int) -> Round:
        """Start the next round at once; see `ManyNodes.join`."""
        me = Participant(
            order=sort_key(None, True, self._host, self.address, os.getpid()),
            host=self._host,
            address=self.address,
            pid=os.getpid(),
            nproc=self._nproc,
            standby_port=0,
            workers_port=workers_port,
            failures=failures,
            attempts=self._rounds,
            launch_id=self._launch_id,
        )
        self._rounds += 1
        return Round(self._rounds, (me,), 0, leads=True)

    async def close(self) -> None:
        """Nothing to leave."""
