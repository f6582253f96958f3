import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from minetorch_launch.engine.council import StoreLostError, guarded
from minetorch_launch.joining import Endpoint, parse_endpoint
from torch.distributed import TCPStore

from minetorch_launch import joining
from minetorch_launch.errors import JoinError, UsageError


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("gpu01", Endpoint("gpu01", 29400)),
        ("gpu01:1", Endpoint("gpu01", 1)),
        ("10.0.0.1:65535", Endpoint("10.0.0.1", 65535)),
        ("::1", Endpoint("::1", 29400)),
        ("[::1]", Endpoint("::1", 29400)),
        ("[fe80::2]:5", Endpoint("fe80::2", 5)),
    ],
)
def test_endpoints(text, endpoint):
    assert parse_endpoint(text) == endpoint
    assert parse_endpoint(str(endpoint)) == endpoint


@pytest.mark.parametrize("text", ["", " ", ":5", "a:", "a:x", "a:0", "a:65536", "[::1", "[]:5", "[::1]5"])
def test_what_is_no_endpoint(text):
    with pytest.raises(UsageError, match=r"is no place to meet: type HOST or HOST:PORT"):
        parse_endpoint(text)


def test_an_address_is_this_machines_if_it_can_be_bound():
    assert joining.is_this_machine(["192.0.2.1", "127.0.0.1"])
    assert not joining.is_this_machine(["192.0.2.1"])
    assert joining.address_towards("127.0.0.1", 1) == "127.0.0.1"
    assert joining.interface_of("127.0.0.1") == "lo"
    assert joining.interface_of("192.0.2.1") is None


def test_a_taken_port():
    with joining.listen("127.0.0.1", 0) as server:
        port = server.getsockname()[1]
        assert joining.reach_now("127.0.0.1", port) is None
        with pytest.raises(JoinError, match=rf"cannot open port {port} at 127.0.0.1 .*Address already in use"):
            joining.listen("127.0.0.1", port)
    assert "refused by 127.0.0.1" in joining.reach_now("127.0.0.1", port)


def test_waiting_says_so_and_gives_up():
    with joining.listen("127.0.0.1", 0) as server:
        free = Endpoint("localhost", server.getsockname()[1])
    said, times = [], iter(range(0, 10**6, 20))
    with pytest.raises(JoinError) as refused:
        joining.reach(free, ["127.0.0.1"], 60, say=said.append, check=lambda: None, clock=lambda: next(times))
    assert re.search(
        r"waiting for the rendezvous at localhost:\d+ \(127.0.0.1\) for \d+ s: Connection refused", said[0]
    )
    assert "within 60 s" in str(refused.value)
    assert "is minetorch-launch running on localhost, with the same --rdzv and --nodes?" in str(refused.value)


def test_waiting_can_be_broken_off():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        joining.reach(Endpoint("x", 1), ["127.0.0.1"], 60, say=print, check=stop)


def test_a_connection_gives_up_on_a_silent_peer():
    with joining.listen("127.0.0.1", 0) as server:
        address, port = server.getsockname()
        with socket.create_connection((address, port)) as ours, socket.create_connection((address, port)) as other:
            joining.keep_alive(address, port, 12, answer_s=25)
            for connection in (ours, other):
                assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12000
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


STORE = """
import sys, time
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=True, wait_for_workers=False)
print("ready", flush=True)
time.sleep(1000)
"""


def test_a_store_whose_host_is_stopped_is_lost():
    with joining.listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, "-c", STORE, str(port)], stdout=subprocess.PIPE, text=True) as host:
        try:
            assert host.stdout.readline() == "ready\n"
            store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
            joining.keep_alive("127.0.0.1", port, 12, answer_s=1)
            with guarded():
                assert store.add("questions", 1) == 1
            host.send_signal(signal.SIGSTOP)
            while Path(f"/proc/{host.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
                time.sleep(0.01)
            with pytest.raises(StoreLostError, match="Timeout"), guarded():
                store.add("questions", 1)
        finally:
            host.kill()
