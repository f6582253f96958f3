"""How nodes come together, and what becomes of them when one of them goes: real stores, several nodes."""

import asyncio
import json
import re
import signal
import socket
import threading
import time
from contextlib import asynccontextmanager, suppress

import pytest

from minetorch_launch.errors import JoinError, UsageError
from minetorch_launch.rendezvous.endpoints import reach
from minetorch_launch.rendezvous.host import choose
from minetorch_launch.rendezvous.membership import Liveness
from minetorch_launch.rendezvous.messages import (
    Decision,
    DumpStacks,
    Finish,
    NodeArrived,
    NodeLost,
    Stacks,
    StopWorkers,
    WorkersFailed,
    WorkersSucceeded,
    from_json,
    to_json,
)
from minetorch_launch.rendezvous.participant import Participant, sort_key
from minetorch_launch.rendezvous.round import LeaderLostError
from minetorch_launch.rendezvous.single_node import SingleNode
from minetorch_launch.rendezvous.store_client import StoreClient
from minetorch_launch.validators import Endpoint
from tests.launch.rendezvous_nodes import QUICK, Node, StoreProcesses

# Messages and other plain data.


@pytest.mark.parametrize(
    "message",
    [StopWorkers("why", "hang", {"rank": 1}), Stacks(1, 2, [{"rank": 3}]), NodeArrived(), Finish(True)],
    ids=lambda message: type(message).__name__,
)
def test_a_message_survives_its_json(message):
    assert from_json(to_json(message)) == message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "1",
        "{}",
        '{"Unknown": {}}',
        '{"Finish": []}',
        '{"WorkersFailed": {}}',
        '{"WorkersFailed": {"node": true}}',
        '{"WorkersFailed": {"node": "0"}}',
        '{"WorkersFailed": {"node": 0, "more": 1}}',
        '{"StopWorkers": {"reason": "", "kind": "other"}}',
        "[" * 100_000,
        "\x00\ufffd",
        None,
        {"a": 1},
    ],
    ids=repr,
)
def test_malformed_messages_are_none(text):
    assert from_json(text) is None


def test_the_order_of_nodes():
    def names(*keys):
        return [key.split()[-3] for key in sorted(keys)]

    plain = [sort_key(None, False, f"node{number}", "10.0.0.1", 5) for number in (10, 2, 1)]
    first = sort_key(None, True, "node9", "10.0.0.1", 5)
    numbered = sort_key(3, False, "z", "10.0.0.1", 5), sort_key(10, True, "a", "10.0.0.1", 5)
    order = [f"node{int(name.removeprefix('node')):d}" for name in names(*plain, first)]
    assert order == ["node9", "node1", "node2", "node10"]
    assert names(*reversed(numbered)) == ["z", "a"]


def participant(name, attempts=0):
    return Participant(name, name, "127.0.0.1", 1, 1, 1, 1, attempts=attempts, node_id=name)


@pytest.mark.parametrize(
    ("arrived", "expected", "nodes", "is_quiet", "chosen"),
    [
        ("a", "", (2, 2), True, None),
        ("ab", "", (2, 2), False, "ab"),
        ("ab", "", (2, 3), False, None),
        ("ab", "", (2, 3), True, "ab"),
        ("abc", "", (1, 2), False, "ab"),
        ("ab", "abc", (1, 3), True, None),  # a living node is waited for
        ("ab", "ab", (1, 3), False, "ab"),  # all are back: at once
        ("axb", "ab", (2, 2), False, "ab"),  # who was there has the place
        ("axb", "ab", (2, 3), False, "abx"),  # who waits comes along
        ("a", "a", (2, 2), True, None),
        ("ax", "a", (2, 2), False, "ax"),
        ("ax", "a", (2, 4), False, None),
    ],
)
def test_who_takes_part(arrived, expected, nodes, is_quiet, chosen):
    found = choose([participant(name) for name in arrived], set(expected), nodes, is_quiet=is_quiet)
    assert (found and "".join(each.node_id for each in found)) == chosen


def test_a_node_is_silent_when_its_pulse_stands_still_by_the_readers_clock():
    liveness = Liveness(12)
    for now in range(100, 113):
        assert not liveness.look({"still": "1", "alive": str(now)}, now)
    assert liveness.look({"still": "1", "alive": "x"}, 113) == {"still"}


def test_a_reader_that_was_stopped_itself_grants_new_time():
    liveness = Liveness(12)
    for now in range(100, 111):
        liveness.look({"other": "1"}, now)
    assert not liveness.look({"other": "1"}, 500)
    for now in range(501, 513):
        assert not liveness.look({"other": "1"}, now)
    assert liveness.look({"other": "1"}, 513) == {"other"}


def test_a_node_without_a_first_pulse_has_twice_the_time():
    liveness = Liveness(12)
    silent = [now for now in range(100, 140) if liveness.look({"coming": None}, now)]
    assert silent[0] == 125


def test_one_node_has_no_store():
    async def use():
        rendezvous = SingleNode(host="here", nproc=3)
        assert rendezvous.address == "127.0.0.1"
        first = await rendezvous.join(failures=0, workers_port=5)
        assert (first.number, first.leads, list(first.ranks), first.world_size) == (1, True, [0, 1, 2], 3)
        assert (first.master_address, first.master_port) == ("127.0.0.1", 5)
        first.report(WorkersFailed(0))
        assert await first.next_report() == WorkersFailed(0)
        await first.send_order(Decision("restart"))
        assert await first.next_order() == Decision("restart")
        first.status = {"step": 1}
        assert first.statuses == {0: {"step": 1}}
        second = await rendezvous.join(failures=1, workers_port=5)
        assert (second.number, second.failures, second.launch_id) == (2, 1, first.launch_id)
        await rendezvous.close()

    asyncio.run(use())


# Several nodes.


@pytest.fixture(scope="module")
def template():
    processes = StoreProcesses()
    yield processes
    processes.close()


@pytest.fixture
def job(template):
    """Nodes of a job: an async context, in which each call makes a node."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    @asynccontextmanager
    async def start():
        made = []

        def node(rank, **settings):
            made.append(Node(template, port, rank, **settings))
            return made[-1]

        node.port = port
        try:
            yield node
        finally:
            await asyncio.gather(*(each.close() for each in made))

    yield start
    is_gone = template.gone_within(5)
    assert template.kill_all() or is_gone, "store processes were left"


async def first_round(*nodes):
    return await asyncio.wait_for(asyncio.gather(*(node.join() for node in nodes)), 15)


def test_two_nodes_have_one_view_and_send_each_other_messages(job):
    async def use():
        async with job() as node:
            second, first = node(1, nproc=3), node(0)
            here, there = await first_round(first, second)
            for each in (here, there):
                assert (each.number, each.world_size, each.master_port, each.failures) == (1, 5, 1000, 0)
            assert (here.ranks, there.ranks) == (range(2), range(2, 5))
            assert here.launch_id == there.launch_id
            assert (here.leads, there.leads) == (True, False)
            there.report(WorkersFailed(1))
            here.report(WorkersSucceeded(0, stopped_early=False))
            reports = [await here.next_report(), await here.next_report()]
            assert sorted(reports, key=str) == [WorkersFailed(1), WorkersSucceeded(0, stopped_early=False)]
            await asyncio.gather(*(here.send_order(DumpStacks(number)) for number in range(20)))
            seen = [[(await each.next_order()).request for _ in range(20)] for each in (here, there)]
            assert seen == [list(range(20))] * 2
            there.status = {"step": 7}
            while here.statuses != {1: {"step": 7}}:
                await asyncio.sleep(0.02)

    asyncio.run(use())


def test_a_restart_takes_some_milliseconds_and_says_nothing(job):
    async def use():
        async with job() as node:
            nodes = [node(rank, nodes=(3, 3)) for rank in range(3)]
            rounds = await first_round(*nodes)
            took = []
            for number in range(2, 7):
                await rounds[0].send_order(Decision("restart"))
                began = time.monotonic()
                rounds = await asyncio.gather(*(each.join(failures=number) for each in nodes))
                took.append(time.monotonic() - began)
                assert {(each.number, each.failures) for each in rounds} == {(number, number)}
            assert min(took) < 0.1, took
            assert [each.said for each in nodes] == [[], [], []]

    asyncio.run(use())


@pytest.mark.slow
def test_a_node_that_is_slow_to_stop_is_waited_for_and_never_lost(job):
    async def use():
        async with job() as node:
            first, second = node(0, nodes=(1, 2)), node(1, nodes=(1, 2))
            here, there = await first_round(first, second)
            await here.send_order(StopWorkers("a worker failed", "failure"))
            again = asyncio.create_task(first.join(failures=1))
            await asyncio.sleep(2.5 * QUICK.lost)
            assert not again.done()
            assert here.lost == frozenset()
            assert isinstance(await there.next_order(), StopWorkers)
            there = await second.join(failures=1)
            here = await again
            assert (here.number, len(here.participants), there.number) == (2, 2, 2)

    asyncio.run(use())


@pytest.mark.slow
def test_a_lost_node_is_noticed_and_the_others_go_on_without_it(job):
    async def use():
        async with job() as node:
            nodes = [node(rank, nodes=(1, 3)) for rank in range(3)]
            rounds = await first_round(*nodes)
            await nodes[1].die()
            assert await asyncio.wait_for(rounds[0].next_report(), 3 * QUICK.lost) == NodeLost(1)
            assert rounds[0].lost == {1}
            began = time.monotonic()
            rounds = await asyncio.gather(nodes[0].join(), nodes[2].join())
            assert time.monotonic() - began < 0.2
            assert [list(each.ranks) for each in rounds] == [[0, 1], [2, 3]]

    asyncio.run(use())


def test_a_node_that_lost_its_own_store_process_comes_back_to_the_same_leader(job):
    async def use():
        async with job() as node:
            nodes = [node(rank, nodes=(1, 2)) for rank in range(2)]
            here, there = await first_round(*nodes)
            nodes[1].signal(signal.SIGKILL)
            with pytest.raises(LeaderLostError):
                await asyncio.wait_for(there.next_order(), 5)
            again = asyncio.create_task(nodes[1].join())
            assert await asyncio.wait_for(here.next_report(), QUICK.lost / 2) == NodeLost(1)
            rounds = await asyncio.gather(nodes[0].join(), again)
            assert [each.leads for each in rounds] == [True, False]

    asyncio.run(use())


def test_a_node_that_leaves_is_noticed_at_once(job):
    async def use():
        async with job() as node:
            nodes = [node(rank, nodes=(1, 2)) for rank in range(2)]
            here, there = await first_round(*nodes)
            there.report(WorkersFailed(1))
            await nodes[1].close()
            assert await here.next_report() == WorkersFailed(1)
            assert await asyncio.wait_for(here.next_report(), QUICK.lost / 2) == NodeLost(1)

    asyncio.run(use())


def test_a_death_in_the_middle_of_a_write_blocks_nobody(job):
    async def use():
        async with job() as node:
            nodes = [node(rank) for rank in range(2)]
            here, there = await first_round(*nodes)
            with socket.create_connection(("127.0.0.1", node.port)) as dying:
                dying.sendall(b"\x00\x05\x00\x00\x00")  # the beginning of a call
            there.report(WorkersFailed(1))
            assert await asyncio.wait_for(here.next_report(), 5) == WorkersFailed(1)

    asyncio.run(use())


@pytest.mark.slow
def test_foreign_bytes_in_the_store_do_no_harm(job, template):
    garbage = [
        "\ufffd\x00",
        "[" * 5000,
        "{}",
        '{"arrival": {"order": 1}}',
        json.dumps({"arrival": vars(participant("ghost"))}),
        '{"round": 1, "report": "{\\"WorkersFailed\\": {\\"node\\": 9}}"}',
        '{"round": 1, "report": "{\\"NodeLost\\": {\\"node\\": 1}}"}',
        '{"round": 1, "report": "{\\"Finish\\": {}}"}',
        '{"round": 1, "report": 5}',
        '{"round": 1, "order": "{}", "roster": {"participants": [1]}}',
    ]

    async def use():
        async with job() as node:
            nodes = [node(rank) for rank in range(2)]
            here, there = await first_round(*nodes)
            me = there.participants[1]

            async def start_process():
                return template.start()[1]

            stranger = await StoreClient.start(start_process)
            await stranger.connect("127.0.0.1", node.port, 5)
            head = int((await stranger.get("head"))[0])
            for number, text in enumerate(garbage):
                await stranger.push("inbox", text)
                await stranger.set("pulse/leader", text)
                await stranger.set(f"pulse/{me.node_id}", text)
                await stranger.set("roster", text)
                if number == 0:
                    await stranger.set(f"log/{head + 1}", text)  # the leader's next entry overwrites the key
            await asyncio.sleep(3 * QUICK.pulse)
            stranger.close()
            there.report(WorkersFailed(1))
            assert await asyncio.wait_for(here.next_report(), 5) == WorkersFailed(1)
            await here.send_order(DumpStacks(1))
            await here.send_order(Finish())
            assert await asyncio.wait_for(there.next_order(), 5) == Finish()

    asyncio.run(use())


# Spares, and nodes that come late.


def test_a_range_of_nodes_begins_when_no_more_arrive_and_takes_in_who_comes_late(job):
    async def use():
        async with job() as node:
            nodes = [node(rank, nodes=(1, 3)) for rank in range(3)]
            here, _ = await first_round(*nodes[:2])
            late = asyncio.create_task(nodes[2].join())
            assert await asyncio.wait_for(here.next_report(), 5) == NodeArrived()
            rounds = await asyncio.gather(*(each.join() for each in nodes[:2]), late)
            assert {(each.number, each.world_size) for each in rounds} == {(2, 6)}
            assert len({each.launch_id for each in (here, *rounds)}) == 1

    asyncio.run(use())


@pytest.mark.slow
def test_a_spare_takes_the_place_of_a_lost_node(job):
    async def use():
        async with job() as node:
            nodes = [node(rank) for rank in range(2)]
            here, _ = await first_round(*nodes)
            spare = node(None, host="spare")
            waiting = asyncio.create_task(spare.join())
            await asyncio.sleep(3 * QUICK.pulse)
            await nodes[1].die()
            assert await asyncio.wait_for(here.next_report(), 3 * QUICK.lost) == NodeLost(1)
            rounds = await asyncio.gather(nodes[0].join(), waiting)
            assert [each.host for each in rounds[1].participants] == ["node0", "spare"]
            assert here.launch_id == rounds[1].launch_id

    asyncio.run(use())


def test_a_node_too_many_gives_up_or_ends_with_the_job(job):
    async def use():
        async with job() as node:
            nodes = [node(rank) for rank in range(2)]
            here, _ = await first_round(*nodes)
            impatient, patient = node(None, host="a", join_timeout=0.5), node(None, host="b")
            waiting = asyncio.create_task(patient.join())
            with pytest.raises(JoinError) as refused:
                await impatient.join()
            message = "without this node: other nodes have 2 of 2 places of the job (on node0, node1). If this is"
            assert message in str(refused.value)
            assert not refused.value.job_can_be_requeued
            await here.send_order(Finish())
            await asyncio.gather(*(each.close() for each in nodes))
            with pytest.raises(JoinError, match="has ended without this node"):
                await waiting

    asyncio.run(use())


def test_a_node_with_a_number_that_comes_before_the_launch_has_ended_takes_part_in_the_next_one(job):
    async def use():
        async with job() as node:
            nodes = [node(rank) for rank in range(2)]
            first, _ = await first_round(*nodes)
            early = node(1)
            waiting = asyncio.create_task(early.join())
            await asyncio.sleep(5 * QUICK.pulse)
            await first.send_order(Finish())
            await asyncio.gather(*(each.close() for each in nodes))
            second, joined = await asyncio.wait_for(asyncio.gather(node(0).join(), waiting), 15)
            assert (joined.number, joined.node_rank) == (1, 1)
            assert joined.launch_id == second.launch_id != first.launch_id

    asyncio.run(use())


# The leader goes.


def test_the_next_node_leads_when_the_leader_dies(job):
    async def use():
        async with job() as node:
            nodes = [node(rank, nodes=(2, 3)) for rank in range(3)]
            rounds = await first_round(*nodes)
            await nodes[0].die()
            for each in rounds[1:]:
                with pytest.raises(LeaderLostError):
                    await asyncio.wait_for(each.next_order(), 3 * QUICK.lost)
            rounds = await asyncio.wait_for(asyncio.gather(*(each.join(failures=1) for each in nodes[1:])), 10)
            assert [each.leads for each in rounds] == [True, False]
            assert {(each.number, each.failures, each.world_size) for each in rounds} == {(2, 1, 4)}
            [line] = nodes[1].said
            place = re.search(r"node1 hosts the rendezvous now.* --rdzv-endpoint 127.0.0.1:(\d+)", line)
            assert nodes[2].said == []
            back = node(0, nodes=(2, 3), endpoint=Endpoint("127.0.0.1", int(place[1])))
            waiting = asyncio.create_task(back.join())
            assert await asyncio.wait_for(rounds[0].next_report(), 5) == NodeArrived()
            rounds = await asyncio.gather(*(each.join() for each in nodes[1:]), waiting)
            assert [each.node_rank for each in rounds] == [1, 2, 0]
            assert {each.failures for each in rounds} == {0}

    asyncio.run(use())


@pytest.mark.slow
def test_a_leader_that_is_stopped_is_lost_without_any_word(job):
    async def use():
        async with job() as node:
            nodes = [node(rank, nodes=(1, 3)) for rank in range(3)]
            rounds = await first_round(*nodes)
            nodes[0].signal(signal.SIGSTOP)
            for each in rounds:
                with pytest.raises(LeaderLostError):
                    await asyncio.wait_for(each.next_order(), 4 * QUICK.lost)
            again = await asyncio.wait_for(asyncio.gather(*(each.join() for each in nodes[1:])), 20)
            assert {each.world_size for each in again} == {4}
            nodes[0].signal(signal.SIGCONT)

    asyncio.run(use())


@pytest.mark.slow
def test_the_node_after_the_leader_is_gone_as_well(job):
    async def use():
        async with job() as node:
            nodes = [node(rank, nodes=(1, 3)) for rank in range(3)]
            rounds = await first_round(*nodes)
            await asyncio.gather(nodes[0].die(), nodes[1].die())
            with pytest.raises(LeaderLostError):
                await asyncio.wait_for(rounds[2].next_order(), 3 * QUICK.lost)
            alone = await asyncio.wait_for(nodes[2].join(), 20)
            assert (alone.leads, alone.number, alone.world_size) == (True, 2, 2)

    asyncio.run(use())


@pytest.mark.slow
def test_too_few_nodes_elsewhere_return_when_the_endpoint_answers_again(job):
    async def use():
        async with job() as node:
            nodes = [node(rank, nodes=(3, 3)) for rank in range(3)]
            await first_round(*nodes)
            await nodes[0].die()
            waiting = [asyncio.create_task(each.join(failures=1)) for each in nodes[1:]]
            await asyncio.sleep(3 * QUICK.pulse)
            back = node(0, nodes=(3, 3))
            rounds = await asyncio.wait_for(asyncio.gather(back.join(), *waiting), 20)
            assert [each.leads for each in rounds] == [True, False, False]
            assert {(each.number, each.failures) for each in rounds} == {(2, 1)}
            assert any("goes to the rendezvous at 127.0.0.1" in line for line in nodes[1].said)

    asyncio.run(use())


# What is said when nodes do not come together.


def test_too_few_nodes(job):
    async def use():
        async with job() as node:
            first, second = (node(rank, nodes=(3, 3), join_timeout=1) for rank in range(2))
            errors = await asyncio.gather(first.join(), second.join(), return_exceptions=True)
            assert re.match(r"2 of 3 nodes have joined at .* after 1 s \(here: node0, node1\): start", str(errors[0]))
            assert str(errors[1]) == str(errors[0])
            assert [each.job_can_be_requeued for each in errors] == [True, True]

    asyncio.run(use())


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [
        ("no-such-host.invalid", 5, "cannot find the address of 'no-such-host.invalid'.*: check the spelling"),
        ("127.0.0.1", 1, "could not connect .*127.0.0.1:1 .*refused.*is minetorch-launch running on 127.0.0.1"),
    ],
)
def test_an_endpoint_that_cannot_be_reached(job, host, port, said):
    async def use():
        async with job() as node:
            with pytest.raises(JoinError, match=said) as error:
                await node(1, endpoint=Endpoint(host, port), join_timeout=0.3).open()
            assert error.value.job_can_be_requeued

    asyncio.run(use())


def test_localhost_stays_on_this_machine_where_the_host_name_has_no_other_address(job):
    async def use():
        async with job() as node:
            here = Endpoint("localhost", node.port)
            nodes = [node(rank, endpoint=here, host=name) for rank, name in ((0, "localhost"), (1, "node1"))]
            rounds = await first_round(*nodes)
            assert rounds[1].master_address in ("127.0.0.1", "::1")
            assert await reach("127.0.0.2", node.port) is not None

    asyncio.run(use())


def test_several_nodes_need_a_port(job):
    async def use():
        async with job() as node:
            with pytest.raises(UsageError, match="port that is not 0"):
                await node(0, endpoint=Endpoint("127.0.0.1", 0)).open()

    asyncio.run(use())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"version": "2.0"}, r"node1 runs Minetorch 2\.0 \(protocol \d+\), and the leader at .* runs Minetorch 1\.0 "),
        ({"rdzv_id": "other"}, "node1 belongs to the job other, but the launcher at .* serves the job job: "),
    ],
    ids=["version", "job"],
)
def test_a_node_of_another_version_or_job_is_refused(job, settings, said):
    async def use():
        async with job() as node:
            await node(0).open()
            with pytest.raises(JoinError, match=said) as error:
                await node(1, **settings).open()
            assert not error.value.job_can_be_requeued

    asyncio.run(use())


@pytest.mark.parametrize("rank", [0, 1])
def test_something_else_at_the_port_is_no_launcher(job, rank):
    def hang_up(server):
        with suppress(OSError):
            while True:
                server.accept()[0].close()

    async def use():
        async with job() as node:
            with socket.create_server(("127.0.0.1", node.port)) as server:
                threading.Thread(target=hang_up, args=(server,), daemon=True).start()
                with pytest.raises(JoinError, match="no launcher of this job answers there"):
                    await node(rank, join_timeout=1).open()
                server.shutdown(socket.SHUT_RDWR)

    asyncio.run(use())


def test_a_listener_that_never_answers_is_no_launcher(job):
    async def use():
        async with job() as node:
            with (
                socket.create_server(("127.0.0.1", node.port)),
                pytest.raises(JoinError, match="no launcher of this job answers there"),
            ):
                await node(1, join_timeout=0.5).open()

    asyncio.run(use())


def test_every_wait_can_be_cancelled(job):
    async def use():
        async with job() as node:
            waits = [asyncio.create_task(node(1).open())]
            await asyncio.sleep(0.1)
            waits.append(asyncio.create_task(node(0, nodes=(3, 3)).join()))
            await asyncio.sleep(0.5)
            began = time.monotonic()
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)
            assert time.monotonic() - began < 0.2

    asyncio.run(use())
