"""Nodes for the tests of the rendezvous: several in one process, each with a store process of its own."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

# Forks store processes from one that has imported torch, as the launcher's fork server does.
FORK_SERVER = """
import gc, os, signal, socket, sys
from minetorch_launch.processes import store_process
gc.freeze()
control = socket.socket(fileno=int(sys.argv[1]))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    data, fds, _, _ = socket.recv_fds(control, 1, 1)
    if not data:
        break
    pid = os.fork()
    if pid == 0:
        control.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        store_process.main(fds[0])
    os.close(fds[0])
    control.sendall(b"%10d" % pid)
"""


class StoreProcesses:
    """Starts store processes, and knows their pids."""

    def __init__(self):
        self._control, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-c", FORK_SERVER, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        self.pids = []

    async def start(self):
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"x"], [theirs.fileno()])
        self.pids.append(int(self._control.recv(10, socket.MSG_WAITALL)))
        return ours

    def close(self):
        self._control.close()
        self._server.wait(10)
        end = time.monotonic() + 5
        while (left := [pid for pid in self.pids if is_alive(pid)]) and time.monotonic() < end:
            time.sleep(0.01)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, f"store processes left running: {left}"


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
