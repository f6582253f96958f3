"""Many nodes: several launchers on one machine, each a node; with a link of their own where root can make one."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress

import pytest

LOST_SECONDS = 12.0

# Adds up ones for as many rounds as it is told.
COUNTS = """
    import os, sys, time
    import torch, torch.distributed as dist

    dist.init_process_group()
    rank, world = dist.get_rank(), dist.get_world_size()
    print(f"rank {rank} of {world} on node {os.environ['GROUP_RANK']}, local {os.environ['LOCAL_RANK']}", flush=True)
    print("launch", os.environ["MINETORCH_LAUNCH_ID"], "start", os.environ["MINETORCH_ATTEMPT"], flush=True)
    print("pid", os.getpid(), flush=True)
    rounds, fail_at = int(sys.argv[1]), int(sys.argv[2])
    for number in range(rounds):
        one = torch.ones(1)
        dist.all_reduce(one)
        assert one.item() == world
        if number == 3:
            print(f"going with {world}", flush=True)
        if number == fail_at and rank == world - 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            raise ValueError("the last rank gave up")
        time.sleep(0.02)
    print("done", flush=True)
"""

# Stops by itself when it is told to, as a Trainer does, and says by which signal.
LISTENS = """
    import os, signal, sys, time

    def stop(signum, frame):
        print("told", signal.Signals(signum).name, flush=True)
        sys.exit(75)

    signal.signal(signal.SIGUSR2, stop)
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
"""


class Node:
    """A launcher whose lines can be waited for."""

    def __init__(self, process):
        self.process = process
        self.lines = []
        self._more = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(stream,)) for stream in (process.stdout, process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream):
        with suppress(ValueError):  # closed under us
            for line in stream:
                with self._more:
                    self.lines.append(line.rstrip("\n"))
                    self._more.notify_all()

    def wait_for(self, pattern, count=1, timeout=60):
        """The first line that matches, once `count` of them have come."""

        def found():
            return [line for line in self.lines if re.search(pattern, line)]

        with self._more:
            assert self._more.wait_for(lambda: len(found()) >= count, timeout), (pattern, self.text)
        return found()[count - 1]

    def end(self, timeout=60):
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(10)
        return code

    @property
    def text(self):
        return "\n".join(self.lines)


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def nodes(launches, port):
    """Starts the launcher of one node of a job."""
    started = []

    def start(*words, of="2", rdzv=f"127.0.0.1:{port}", rank=None, command=None):
        place = [] if rank is None else ["--node-rank", rank]
        options = {} if command is None else {"command": command}
        node = Node(launches.start("--nodes", of, "--rdzv-endpoint", rdzv, *place, *words, **options))
        started.append(node)
        return node

    yield start
    for node in started:
        if node.process.poll() is None:
            node.process.kill()
        node.end()


def test_ranks_follow_the_order_of_the_nodes(launches, nodes):
    script = launches.script(COUNTS)
    second = nodes("--nproc", 2, script, 5, -1, rank=1)
    first = nodes("--nproc", 1, script, 5, -1, rank=0)
    assert (first.end(), second.end()) == (0, 0), first.text + second.text
    assert "rank 0 of 3 on node 0, local 0" in first.text
    assert "rank 1 of 3 on node 1, local 0" in second.text
    assert "rank 2 of 3 on node 1, local 1" in second.text


@pytest.mark.slow
def test_the_rendezvous_host_comes_first_without_numbers(launches, nodes):
    script = launches.script(COUNTS)
    first = nodes(script, 5, -1)
    second = nodes(script, 5, -1)
    assert (first.end(), second.end()) == (0, 0), first.text + second.text
    hosts = [node for node in (first, second) if "on node 0" in node.text]
    assert len(hosts) == 1


def test_a_failure_restarts_all_nodes_and_one_tells_of_it(launches, nodes):
    script = launches.script(COUNTS)
    first = nodes("--max-restarts", 1, script, 10, 5, rank=0)
    second = nodes("--max-restarts", 1, script, 10, 5, rank=1)
    assert (first.end(), second.end()) == (0, 0), first.text + second.text
    for node in (first, second):
        assert node.text.count("going with 2") == 2
    assert "rank 1 failed: ValueError: the last rank gave up; restart 1 of 1" in first.text
    assert "gave up" not in second.text


@pytest.mark.slow
def test_a_failure_without_restarts_ends_all_nodes_with_its_code(launches, nodes):
    script = launches.script(COUNTS)
    first = nodes(script, 1000, 5, rank=0)
    second = nodes("--nproc", 2, script, 1000, 5, rank=1)
    assert (first.end(), second.end()) == (1, 1)
    assert "rank 2 of 3 failed first: ValueError: the last rank gave up" in first.text
    assert first.lines[-1] == "ValueError: the last rank gave up"
    assert (
        second.lines[-1] == "minetorch-launch: rank 2 failed: ValueError: the last rank gave up; the whole launch ends"
    )
    assert not launches.processes()


def test_a_stop_of_one_launcher_stops_all(launches, nodes):
    script = launches.script(COUNTS)
    first, second = (nodes(script, 10**6, -1, rank=rank) for rank in (0, 1))
    for node in (first, second):
        node.wait_for("going with 2")
    second.process.send_signal(signal.SIGTERM)
    assert (first.end(), second.end()) == (143, 143), first.text + second.text
    assert "received SIGTERM, so that all nodes stop" in first.text
    assert not launches.processes()


@pytest.mark.slow
def test_a_preemption_warning_to_one_launcher_reaches_every_worker_once(launches, nodes):
    script = launches.script(LISTENS)
    first, second = (nodes("--nproc", 2, script, rank=rank) for rank in (0, 1))
    _wait_until_all_are_ready(first, second)
    first.process.send_signal(signal.SIGUSR2)
    assert (first.end(), second.end()) == (75, 75), first.text + second.text
    for node in (first, second):
        assert _said(node, "told SIGUSR2") == 2


def _said(node, text):
    """How many ranks said it: equal lines of several ranks are shown as one."""
    total = 0
    for line in node.lines:
        found = re.match(r"\[\S*?:([\d,-]+)\] (.*)", line)
        for part in found[1].split(",") if found and found[2] == text else ():
            low, _, high = part.partition("-")
            total += int(high or low) - int(low) + 1
    return total


def _wait_until_all_are_ready(*nodes):
    end = time.monotonic() + 60
    while any(_said(node, "ready") < 2 for node in nodes):
        assert time.monotonic() < end, [node.text for node in nodes]
        time.sleep(0.05)


@pytest.mark.slow
def test_an_elastic_job_goes_on_without_a_node_that_dies_and_takes_it_in_again(launches, nodes):
    script = launches.script(COUNTS)
    first, second = (nodes(script, 10**6, -1, of="1:2", rank=rank) for rank in (0, 1))
    first.wait_for("going with 2")
    killed = time.monotonic()
    second.process.kill()
    first.wait_for("going with 1")
    assert time.monotonic() - killed < LOST_SECONDS + 20
    back = nodes(script, 10**6, -1, of="1:2", rank=1)
    first.wait_for("a node has joined")
    first.wait_for("going with 2", count=2)
    back.wait_for("going with 2")
    starts = [
        re.search(r"launch (\S+) start (\d+)", line) for line in first.lines if re.search(r"launch \S+ start", line)
    ]
    assert len({start[1] for start in starts}) == 1
    assert [start[2] for start in starts] == [str(number) for number in range(1, len(starts) + 1)]
    assert starts[-1][0] in back.text
    first.process.send_signal(signal.SIGINT)
    assert (first.end(), back.end()) == (130, 130)
    assert not launches.processes()


@pytest.mark.slow
def test_a_launcher_that_was_paused_takes_part_again(launches, nodes):
    """It finds the orders of the leader all at once, and must not kill the new workers together with the old ones."""
    script = launches.script(
        """
        import os, pathlib, signal, sys, time

        signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit(1)))
        print("start", os.environ["MINETORCH_ATTEMPT"], flush=True)
        while not pathlib.Path("end").exists():
            time.sleep(0.05)
        time.sleep(3)
        """
    )
    first, second = (nodes(script, rank=rank) for rank in (0, 1))
    for node in (first, second):
        node.wait_for("start 1")
    second.process.send_signal(signal.SIGSTOP)
    first.wait_for("the workers continue from the last checkpoint")
    second.process.send_signal(signal.SIGCONT)
    for node in (first, second):
        node.wait_for("start 2")
    (launches.folder / "end").touch()
    assert (first.end(), second.end()) == (0, 0), first.text + second.text


@pytest.mark.slow
def test_the_job_outlives_the_node_that_keeps_the_rendezvous(launches, nodes):
    script = launches.script(COUNTS)
    first, second, third = (nodes(script, 10**6, -1, of="1:3", rank=rank) for rank in (0, 1, 2))
    third.wait_for("going with 3")
    first.process.kill()
    line = second.wait_for("hosts the rendezvous now")
    for node in (second, third):
        node.wait_for("going with 2")
    back = nodes(script, 10**6, -1, of="1:3", rdzv=line.split("--rdzv-endpoint ")[1], rank=0)
    for node in (second, third, back):
        node.wait_for("going with 3", count=2 if node is third else 1)
    third.process.send_signal(signal.SIGINT)
    assert {node.end() for node in (second, third, back)} == {130}
    assert not launches.processes()


@pytest.mark.slow
def test_a_job_of_a_fixed_size_waits_for_a_lost_node_and_says_so(launches, nodes):
    script = launches.script(COUNTS)
    first, second = (nodes("--join-timeout", 10, script, 10**6, -1, rank=rank) for rank in (0, 1))
    first.wait_for("going with 2")
    second.process.kill()
    assert first.end() == 1
    assert "1 of 2 nodes have joined" in first.lines[-1]
    assert not launches.processes()


@pytest.mark.slow
def test_a_launcher_too_many_takes_the_place_of_one_that_goes(launches, nodes):
    script = launches.script(COUNTS)
    first, second = (nodes(script, 10**6, -1, rank=rank) for rank in (0, 1))
    first.wait_for("going with 2")
    third = nodes(script, 10**6, -1)
    third.wait_for(r"other nodes have 2 of 2 places of the job \(on \S+\); waiting for a place")
    second.process.kill()
    third.wait_for("going with 2")
    third.process.send_signal(signal.SIGINT)
    assert (first.end(), third.end()) == (130, 130)
    assert not launches.processes()


@pytest.mark.slow
def test_a_launcher_too_many_ends_with_the_job_and_says_so(launches, nodes):
    script = launches.script(COUNTS)
    first, second = nodes(script, 10**6, -1), nodes(script, 10**6, -1)
    first.wait_for("going with 2")
    third = nodes(script, 10**6, -1)
    third.wait_for("waiting for a place")
    first.process.send_signal(signal.SIGINT)
    assert (first.end(), second.end(), third.end()) == (130, 130, 1)
    said = "has ended.* without this node: other nodes have . of 2 places"
    assert re.search(said, third.lines[-1])
    assert not launches.processes()


@pytest.mark.slow
def test_a_launcher_too_many_that_is_stopped_does_not_end_the_job(launches, nodes):
    script = launches.script(COUNTS)
    first, second = (nodes("--max-restarts", 1, script, 10**6, -1, rank=rank) for rank in (0, 1))
    first.wait_for("going with 2")
    third = nodes("--max-restarts", 1, script, 10**6, -1)
    third.wait_for("waiting for a place")
    third.process.send_signal(signal.SIGINT)
    assert third.end() == 130
    os.kill(int(second.wait_for(r"pid \d+").split()[-1]), signal.SIGKILL)
    first.wait_for("going with 2", count=2)
    first.process.send_signal(signal.SIGINT)
    assert (first.end(), second.end()) == (130, 130)
    assert not launches.processes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rdzv", "said"),
    [
        ("no-such-host.invalid", r"cannot find the address of 'no-such-host.invalid'.*check the spelling"),
        ("192.0.2.1:5", r"could not connect to the rendezvous at 192.0.2.1:5 within .* s .*|no route"),
        ("127.0.0.1:1", r"could not connect .*127.0.0.1:1 .*refused.*is minetorch-launch running on 127.0.0.1"),
    ],
)
def test_errors_of_joining_say_what_to_check(launches, nodes, rdzv, said):
    node = nodes("--join-timeout", 0.5, launches.script("pass"), rdzv=rdzv, rank=1)
    assert node.end() == 1
    assert re.search(said, node.lines[-1]), node.text


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_something_else_at_the_port_is_no_launcher(launches, nodes, port, rank):
    with socket.create_server(("127.0.0.1", port)) as server:

        def hang_up():
            with suppress(OSError):
                while True:
                    server.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        node = nodes("--join-timeout", 1, launches.script("pass"), rank=rank)
        assert node.end() == 1
        assert "no launcher of this job answers there" in node.lines[-1]


@pytest.mark.slow
def test_two_commands_at_one_place_never_merge(launches, nodes):
    one = launches.script(COUNTS, "one.py")
    other = launches.script(COUNTS, "other.py")
    first = nodes(one, 5, -1, rank=0)
    stray = nodes("--join-timeout", 2, other, 5, -1, rank=1)
    assert stray.end() == 1
    assert "could not connect to the rendezvous" in stray.lines[-1] or "belongs to the job" in stray.lines[-1]
    second = nodes(one, 5, -1, rank=1)
    assert (first.end(), second.end()) == (0, 0), first.text + second.text


@pytest.mark.slow
def test_the_node_that_kept_the_rendezvous_comes_back_with_its_own_command(launches, nodes):
    script = launches.script(COUNTS)
    first, second = (nodes(script, 10**6, -1, rank=rank) for rank in (0, 1))
    second.wait_for("going with 2")
    first.process.kill()
    second.wait_for("hosts the rendezvous now")
    back = nodes(script, 10**6, -1, rank=0)
    for node in (second, back):
        node.wait_for("going with 2", count=2 if node is second else 1)
    assert "answers there again" in second.text
    second.process.send_signal(signal.SIGINT)
    assert (second.end(), back.end()) == (130, 130)
    assert not launches.processes()


# Rank 0 fails while rank 1 takes longer to save than a silent node is waited for.
SAVES_SLOWLY = """
    import os, signal, sys, time

    def save(signum, frame):
        print("saving", flush=True)
        time.sleep(14)
        sys.exit(0)

    if os.environ["RANK"] == "1":
        signal.signal(signal.SIGTERM, save)
    print("here", flush=True)
    if os.environ["RANK"] == "0":
        time.sleep(1)
        raise ValueError("a bug")
    time.sleep(1000)
"""


@pytest.mark.slow
def test_a_failure_ends_the_job_although_another_worker_is_slow_to_stop(launches, nodes):
    script = launches.script(SAVES_SLOWLY)
    first, second = (nodes("--nproc", 2 - rank, script, rank=rank) for rank in (0, 1))
    assert (first.end(), second.end()) == (1, 1), first.text + second.text
    assert "rank 0 of 3 failed first: ValueError: a bug" in first.text
    assert sum("here" in line for line in first.lines + second.lines) <= 3
    assert "lost" not in first.text + second.text


# Every rank steps, until the one that is named stands still.
HANGS = """
    import os, sys, time
    import torch, torch.distributed as dist
    from minetorch_launch import beat

    def stand_still():
        time.sleep(1000)

    dist.init_process_group()
    for step in range(10**6):
        dist.all_reduce(torch.ones(1))
        beat(step)
        if step == 50 and dist.get_rank() == int(sys.argv[1]):
            stand_still()
        time.sleep(0.01)
"""


@pytest.mark.slow
@pytest.mark.parametrize("blamed", [0, 3])
def test_a_hang_on_two_nodes_is_blamed_on_the_rank_that_hangs(launches, nodes, blamed):
    script = launches.script(HANGS)
    options = ("--nproc", 2, "--grace", 2, "--hang-timeout", 3)
    first, second = (nodes(*options, script, blamed, rank=rank) for rank in (0, 1))
    assert (first.end(), second.end()) == (124, 124), first.text + second.text
    assert f"rank {blamed} of 4 failed first: hung" in first.text
    assert "stack summary of 4 ranks" in first.text


# Two machines with a link between them that can be cut without a word.

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="making network namespaces needs root and iproute2"
)


@pytest.fixture
def machines():
    """Two network namespaces with addresses 10.254.254.1 and .2, and a function that sets the link up or down."""
    names = [f"mt{uuid.uuid4().hex[:6]}{letter}" for letter in "ab"]

    def ip(*words, check=True):
        return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)

    made = []
    try:
        for name in names:
            if ip("netns", "add", name, check=False).returncode != 0:
                pytest.skip("this machine allows no network namespaces")
            made.append(name)
        a, b = names
        ip("-n", a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b)
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.254.254.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [("ip", "netns", "exec", name) for name in names], lambda how: ip("-n", b, "link", "set", "eth0", how)
    finally:
        for name in made:
            ip("netns", "delete", name, check=False)


@pytest.mark.slow
@needs_root
def test_a_link_that_is_cut_silently_is_noticed_on_both_sides(launches, nodes, machines):
    inside, set_link = machines
    script = launches.script(COUNTS)
    options = {"of": "1:2", "rdzv": "10.254.254.1:29400"}
    first, second = (
        nodes(
            script, 10**6, -1, rank=rank, command=(*inside[rank], sys.executable, "-m", "minetorch_launch"), **options
        )
        for rank in (0, 1)
    )
    first.wait_for("going with 2")
    second.wait_for("going with 2")
    began = time.monotonic()
    set_link("down")
    for node in (first, second):
        node.wait_for("going with 1", timeout=3 * LOST_SECONDS + 30)
    assert time.monotonic() - began < 3 * LOST_SECONDS + 30


@pytest.mark.slow
@needs_root
def test_two_nodes_that_lost_each_other_meet_again_when_the_link_is_back(launches, nodes, machines):
    inside, set_link = machines
    script = launches.script(COUNTS)
    first, second = (
        nodes(
            script,
            10**6,
            -1,
            rank=rank,
            rdzv="10.254.254.1:29400",
            command=(*inside[rank], sys.executable, "-m", "minetorch_launch"),
        )
        for rank in (0, 1)
    )
    for node in (first, second):
        node.wait_for("going with 2")
    set_link("down")
    first.wait_for("is lost", timeout=3 * LOST_SECONDS + 30)
    second.wait_for("hosts the rendezvous now", timeout=3 * LOST_SECONDS + 30)
    set_link("up")
    for node in (first, second):
        node.wait_for("going with 2", count=2)
    first.process.send_signal(signal.SIGINT)
    assert (first.end(), second.end()) == (130, 130)
    assert not launches.processes()
