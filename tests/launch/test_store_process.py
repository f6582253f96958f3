"""The process that carries out the calls of a store: each of them can be given up."""

import asyncio
import os
import signal
import socket
import subprocess
import sys

import pytest

from minetorch_launch.rendezvous.store_client import StoreClient, StoreLostError
from tests.launch.rendezvous_nodes import StoreProcesses


@pytest.fixture(scope="module")
def template():
    processes = StoreProcesses()
    yield processes
    processes.close()


@pytest.fixture
def processes(template):
    yield template
    is_gone = template.gone_within(5)
    assert template.kill_all() or is_gone


def start(processes, **options):
    async def start_process():
        return processes.start()[1]

    return StoreClient.start(start_process, **options)


async def serve(processes):
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    store = await start(processes)
    await store.serve(listener)
    return store, port


def test_values_waits_and_queues(processes):
    async def use():
        host, port = await serve(processes)
        guest = await start(processes)
        await guest.connect("127.0.0.1", port, 5)
        assert await guest.resolve("localhost", 1) == ["127.0.0.1"] or "::1" in await guest.resolve("localhost", 1)
        assert await guest.get("a") == [None]
        waiting = asyncio.create_task(guest.wait("a"))
        taking = asyncio.create_task(host.take("queue"))
        await guest.set("b", "\u00e9\n")
        assert await host.get("b", "a") == ["\u00e9\n", None]
        await host.set("a", "1")
        assert await waiting == "1"
        await guest.push("queue", "x")
        assert await taking == ["x"]
        for item in "yz":
            await guest.push("queue", item)
        assert await host.take("queue") == ["y", "z"]
        assert await guest.get("b", "a") == ["\u00e9\n", "1"]
        guest.close()
        host.close()

    asyncio.run(use())
    assert processes.gone_within(5)


def test_no_such_host(processes):
    async def use():
        store = await start(processes)
        with pytest.raises(OSError, match="not known"):
            await store.resolve("no-such-host.invalid", 1)
        assert store.lost is None
        store.close()

    asyncio.run(use())


def test_a_wait_ends_at_once_when_the_host_dies(processes):
    async def use():
        host, port = await serve(processes)
        guest = await start(processes)
        await guest.connect("127.0.0.1", port, 5)
        waiting = asyncio.create_task(guest.wait("never"))
        await guest.set("a", "1")
        os.kill(processes.pids[0], signal.SIGKILL)
        with pytest.raises(StoreLostError):
            await asyncio.wait_for(waiting, 5)
        with pytest.raises(StoreLostError):
            await guest.get("a")
        guest.close()
        host.close()

    asyncio.run(use())


def test_a_call_to_a_stopped_host_is_given_up_and_its_process_ends(processes):
    async def use():
        host, port = await serve(processes)
        guest = await start(processes, answer_seconds=0.5)
        await guest.connect("127.0.0.1", port, 5)
        os.kill(processes.pids[0], signal.SIGSTOP)
        with pytest.raises(StoreLostError, match=r"did not answer within 0\.5 s"):
            await guest.get("a")
        with pytest.raises(StoreLostError):
            await guest.get("a")
        guest.close()
        os.kill(processes.pids[0], signal.SIGCONT)
        host.close()

    asyncio.run(use())
    assert processes.gone_within(2)


def test_a_process_that_hangs_in_a_connect_ends_with_its_socket(processes):
    async def use():
        with socket.create_server(("127.0.0.1", 0)) as silent:
            store = await start(processes)
            with pytest.raises(StoreLostError):
                await store.connect("127.0.0.1", silent.getsockname()[1], 0.3)
            store.close()
            assert await asyncio.to_thread(processes.gone_within, 2)

    asyncio.run(use())


def test_cancelled_waits_leave_the_store_of_use(processes):
    async def use():
        store, _ = await serve(processes)
        waiting = asyncio.create_task(store.wait("never"))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await store.set("a", "1")
        assert await store.get("a") == ["1"]
        store.close()

    asyncio.run(use())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stop_signals_do_not_end_it(processes, signum):
    async def use():
        store, _ = await serve(processes)
        os.kill(processes.pids[-1], signum)
        await store.set("a", "1")
        assert await store.get("a") == ["1"]
        store.close()

    asyncio.run(use())


@pytest.mark.slow
def test_it_runs_as_a_program_too_and_writes_nothing():
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "minetorch_launch.processes.store_process", str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)

    async def start_process():
        return ours

    async def use():
        store = await StoreClient.start(start_process)
        await store.serve(socket.create_server(("127.0.0.1", 0)))
        await store.set("a", "1")
        store.close()

    asyncio.run(use())
    assert process.communicate(timeout=10) == (None, b"")
    assert process.returncode == 0
