"""What the membership of many nodes costs: agents without workers, over one store, all on this machine.

    python -m benchmarks.membership [--nodes 64,256,1024] [--rounds 3] [--quick]

The agents share one process. The leader and the last node have store processes of their own, as on a real node; those
of the others are threads, 64 in a process, so that 1,024 nodes fit into the memory of one machine. What 1,024 machines
do at the same time, this one does in turn: the time until all have joined is an upper bound.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from benchmarks.harness import OURS, Options, Row, main, make_parser
from minetorch_launch.rendezvous.many_nodes import ManyNodes
from minetorch_launch.rendezvous.membership import Settings
from minetorch_launch.rendezvous.messages import NodeLost
from minetorch_launch.rendezvous.round import LeaderLostError, Round
from minetorch_launch.validators import Endpoint

__all__ = ["StoreProcesses", "measure", "simulate"]

_SERVER = """
import gc, os, signal, socket, sys, threading
from minetorch_launch.processes import store_process
gc.freeze()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
control = socket.socket(fileno=int(sys.argv[1]))
while True:
    how, fds, _, _ = socket.recv_fds(control, 1, 1)
    if not how:
        os._exit(0)
    pid = os.getpid()
    if how == b"t":
        proxy = store_process.Proxy(socket.socket(fileno=fds[0]))
        threading.Thread(target=proxy.run, daemon=True).start()
    else:
        pid = os.fork()
        if pid == 0:
            control.close()
            if how == b"p":
                store_process.main(fds[0])
            control = socket.socket(fileno=fds[0])
            continue
        os.close(fds[0])
    control.sendall(b"%10d" % pid)
"""
_THREADS_OF_A_PROCESS = 64


class StoreProcesses:
    """Forks store processes from one that has imported torch, as a launcher's fork server does."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        self._controls: list[socket.socket] = []
        with theirs:
            command = [sys.executable, "-c", _SERVER, str(theirs.fileno())]
            environ = {**os.environ, "TORCH_CPP_LOG_LEVEL": "FATAL", "RES_OPTIONS": "timeout:1 attempts:1"}
            self._server = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environ)

    def start(self) -> tuple[int, socket.socket]:
        """A store process's pid, and this process's end of its socket."""
        return _ask(self._control, b"p")

    def start_many(self, count: int) -> list[tuple[int, socket.socket]]:
        """As ``start``, but many of them are threads of one process."""
        started: list[tuple[int, socket.socket]] = []
        while len(started) < count:
            _, control = _ask(self._control, b"s")
            self._controls.append(control)
            started += [_ask(control, b"t") for _ in range(min(_THREADS_OF_A_PROCESS, count - len(started)))]
        return started

    def close(self) -> None:
        """End the processes that start them; they end with their sockets."""
        for control in [self._control, *self._controls]:
            control.close()
        self._server.wait(10)


def _ask(server: socket.socket, how: bytes) -> tuple[int, socket.socket]:
    """Start a process ("p"), a thread ("t") or another server ("s"): its pid, and this process's end of its socket."""
    ours, theirs = socket.socketpair()
    with theirs:
        socket.send_fds(server, [how], [theirs.fileno()])
    return int(server.recv(10, socket.MSG_WAITALL)), ours


async def simulate(processes: StoreProcesses, count: int, idle_seconds: float) -> dict[str, float]:
    """Figures of one job of ``count`` nodes, in seconds."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = Endpoint("127.0.0.1", free.getsockname()[1])
    own = 0, count - 1
    stores = [processes.start(), *processes.start_many(count - 2), processes.start()]

    async def join(rank: int) -> tuple[ManyNodes, Round]:
        async def start_store() -> socket.socket:
            return stores[rank][1]

        nodes, host = (count - 1, count), f"node{rank}"
        settings = Settings(endpoint, "job", nodes, host, 8, node_rank=rank, say=lambda line: None)
        node = await ManyNodes.open(settings, start_store)
        return node, await node.join(failures=0, workers_port=1)

    began = time.monotonic()
    joined = await asyncio.gather(*map(join, range(count)))
    figures = {"until all have joined": time.monotonic() - began}
    nodes, rounds = [node for node, _ in joined], [each for _, each in joined]
    assert all(len(each.participants) == count for each in rounds)
    figures |= await _idle({rank: stores[rank][0] for rank in own}, count, idle_seconds)

    began = time.monotonic()
    os.kill(stores[-1][0], signal.SIGKILL)
    assert await rounds[0].next_report() == NodeLost(count - 1)
    figures["until the leader notices a death"] = time.monotonic() - began
    began = time.monotonic()
    os.kill(stores[0][0], signal.SIGSTOP)
    await asyncio.gather(*(_until_lost(each) for each in rounds[1:-1]))
    figures["until all others notice that the leader does not answer"] = time.monotonic() - began
    os.kill(stores[0][0], signal.SIGKILL)
    await asyncio.gather(*(node.close() for node in nodes))
    return figures


async def _idle(pids: dict[int, int], count: int, seconds: float) -> dict[str, float]:
    """Processor time that each second takes, while nothing happens."""
    before, agents = {rank: _cpu(pid) for rank, pid in pids.items()}, time.process_time()
    await asyncio.sleep(seconds)
    used = [(_cpu(pid) - before[rank]) / seconds for rank, pid in pids.items()]
    return {
        "processor time of the leader's store process, each second": used[0],
        "processor time of another node's store process, each second": used[1],
        "processor time of one agent, each second": (time.process_time() - agents) / seconds / count,
    }


async def _until_lost(round_: Round) -> None:
    with suppress(LeaderLostError):
        while True:
            await round_.next_order()


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _simulate_alone(count: int, idle_seconds: float) -> dict[str, float]:
    processes = StoreProcesses()
    try:
        return asyncio.run(simulate(processes, count, idle_seconds))
    finally:
        processes.close()


def measure(options: Options) -> Iterator[Row]:
    """Simulate jobs of several sizes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for count in [8] if options.quick else map(int, options.arguments.nodes.split(",")):
        jobs = [_simulate_alone(count, 1 if options.quick else 10) for _ in range(options.rounds)]
        for what in jobs[0]:
            yield Row.of("membership", f"{count} nodes: {what}", "s", {OURS: [job[what] for job in jobs]})


if __name__ == "__main__":
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--nodes", default="64,256,1024", help="sizes of the jobs")
    main(measure, parser)
