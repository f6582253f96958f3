"""Which CPUs a worker may use: by mode, on machines made up in ``/sys`` and on this one."""

import os

import pytest

from minetorch_launch.errors import UsageError
from minetorch_launch.numa import MODES, Topology, bind_workers, parse_cpu_list, read_topology

# Two sockets with two nodes each, four cores and two caches a node, two threads a core: 0 and 16, 1 and 17, ...
NODES = {node: frozenset({*range(4 * node, 4 * node + 4), *range(4 * node + 16, 4 * node + 20)}) for node in range(4)}
BIG = Topology(
    nodes=NODES,
    sockets={cpu: cpu % 16 // 8 for cpu in range(32)},
    cores={cpu: cpu % 16 for cpu in range(32)},
    caches={cpu: cpu % 16 // 2 * 2 for cpu in range(32)},
)


def texts(mode, nproc, gpu_nodes=(), topology=BIG):
    return [",".join(map(str, sorted(cpus))) for cpus in bind_workers(mode, topology, nproc, gpu_nodes)]


@pytest.mark.parametrize(
    ("mode", "nproc", "gpu_nodes", "cpus"),
    [
        ("node", 2, [1, 0], ["4,5,6,7,20,21,22,23", "0,1,2,3,16,17,18,19"]),
        ("node", 2, [], ["0,1,2,3,16,17,18,19", "8,9,10,11,24,25,26,27"]),
        ("node", 1, [3, 0], ["12,13,14,15,28,29,30,31"]),
        ("socket", 1, [3], ["8,9,10,11,12,13,14,15,24,25,26,27,28,29,30,31"]),
        ("exclusive", 3, [0, 1, 0], ["0,1,16,17", "4,5,6,7,20,21,22,23", "2,3,18,19"]),
        ("exclusive", 3, [0, 0, 0], ["0,1,16,17", "2,18", "3,19"]),
        ("exclusive", 1, [0, 0], ["0,1,16,17"]),  # the other half is the idle GPU's
        ("exclusive", 8, [], ["0,1,16,17", "2,3,18,19", "4,5,20,21", "6,7,22,23"]),
        ("core-complex", 3, [0, 0, 0], ["0,1,16,17", "2,3,18,19", "0,1,16,17"]),
    ],
)
def test_modes(mode, nproc, gpu_nodes, cpus):
    assert texts(mode, nproc, gpu_nodes)[: len(cpus)] == cpus


def test_a_larger_complex_comes_first():
    topology = Topology({0: frozenset({0, 1, 2})}, caches={0: 0, 1: 1, 2: 1})
    assert texts("core-complex", 2, [0, 0], topology) == ["1,2", "0"]


@pytest.mark.parametrize(
    ("mode", "nodes", "words"),
    [
        ("node", [7], "the NUMA node of GPU 0 is 7, which has no CPU that this process may use"),
        ("node", [0, None], "the NUMA node of GPU 1 is not known"),
        ("exclusive", [0] * 5, "NUMA node 0 has 4 usable cores for 5 workers"),
    ],
)
def test_workers_without_cpus_are_refused(mode, nodes, words):
    with pytest.raises(UsageError, match=words):
        bind_workers(mode, BIG, 1, nodes)


def test_a_gpu_of_unknown_place_is_on_the_only_node():
    assert texts("node", 1, [None], Topology({0: frozenset({5})})) == ["5"]


def test_reading_sys(tmp_path):
    files = {"devices/system/node/node0/cpulist": "0-1,4\n", "devices/system/node/node1/cpulist": "2-3\n"}
    for cpu in range(4):
        place = f"devices/system/cpu/cpu{cpu}"
        files[f"{place}/topology/physical_package_id"] = "0\n"
        files[f"{place}/topology/thread_siblings_list"] = f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}\n"
        for index, level, kind, shared in ((0, 1, "Data", cpu), (1, 4, "Instruction", 9), (2, 3, "Unified", "0-3")):
            files |= {
                f"{place}/cache/index{index}/level": f"{level}\n",
                f"{place}/cache/index{index}/type": f"{kind}\n",
                f"{place}/cache/index{index}/shared_cpu_list": f"{shared}\n",
            }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    topology = read_topology({0, 1, 2, 3}, tmp_path)
    assert topology.nodes == {0: frozenset({0, 1}), 1: frozenset({2, 3})}
    assert topology.cores == {0: 0, 1: 0, 2: 2, 3: 2}
    assert topology.caches == dict.fromkeys(range(4), 0)
    assert topology.sockets == dict.fromkeys(range(4), 0)
    assert read_topology({2}, tmp_path).nodes == {1: frozenset({2})}
    assert read_topology({5, 6}, tmp_path / "none").nodes == {0: frozenset({5, 6})}


@pytest.mark.parametrize("mode", MODES)
def test_on_this_machine_each_worker_gets_cpus_that_it_may_use(mode):
    usable = os.sched_getaffinity(0)
    for cpus in bind_workers(mode, read_topology(usable), 1, []):
        assert cpus
        assert cpus <= usable


def test_lists_of_the_kernel():
    assert parse_cpu_list("0-2,4,7-8\n") == {0, 1, 2, 4, 7, 8}
    assert parse_cpu_list("\n") == frozenset()
