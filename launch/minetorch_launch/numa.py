"""Which CPUs each worker may use: a pure function of the machine's topology, which is read off ``/sys``.

The modes are torchrun's: ``node``, ``socket``, ``exclusive`` and ``core-complex``. A worker belongs to the NUMA node of
its GPU; without GPUs the workers are spread over the nodes evenly and in order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from minetorch_launch.errors import UsageError

MODES = ("node", "socket", "exclusive", "core-complex")

CpuSet = frozenset[int]
Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Topology:
    """The usable CPUs of a machine, and how they lie together."""

    nodes: Mapping[int, CpuSet]
    """Usable CPUs by NUMA node; nodes without any are left out."""

    sockets: Mapping[int, int] = field(default_factory=dict)
    """Socket of each CPU."""

    cores: Mapping[int, int] = field(default_factory=dict)
    """Physical core of each CPU: the lowest of the CPUs on it."""

    caches: Mapping[int, int] = field(default_factory=dict)
    """Last-level cache of each CPU: the lowest of the CPUs that share it."""


def bind_workers(mode: str, topology: Topology, nproc: int, gpu_nodes: Sequence[int | None]) -> tuple[CpuSet, ...]:
    """The CPUs of each of ``nproc`` workers.

    Args:
        mode: one of `MODES`.
        topology: of the machine.
        nproc: number of workers.
        gpu_nodes: NUMA node of each GPU that the workers see, None where it is unknown; empty on a CPU.
            Worker ``i`` has GPU ``i``, and a GPU without a worker keeps its share.

    Raises:
        UsageError: a worker would have no CPU, or a GPU's node is unknown.
    """
    places = _nodes_of_gpus(topology, gpu_nodes) if gpu_nodes else _spread(topology, nproc)
    return tuple(_cpus_of(mode, topology, places, index) for index in range(nproc))


def _nodes_of_gpus(topology: Topology, gpu_nodes: Sequence[int | None]) -> list[int]:
    only = next(iter(topology.nodes)) if len(topology.nodes) == 1 else None
    places = [only if node is None else node for node in gpu_nodes]
    for index, node in enumerate(places):
        if node is None or node not in topology.nodes:
            problem = "is not known" if node is None else f"is {node}, which has no CPU that this process may use"
            raise UsageError(f"--numa-binding: the NUMA node of GPU {index} {problem}: drop the option")
    return [node for node in places if node is not None]


def _spread(topology: Topology, nproc: int) -> list[int]:
    nodes = sorted(topology.nodes)
    return [nodes[index * len(nodes) // nproc] for index in range(nproc)]


def _cpus_of(mode: str, topology: Topology, places: Sequence[int], index: int) -> CpuSet:
    node = places[index]
    cpus = topology.nodes[node]
    if mode == "node":
        return cpus
    if mode == "socket":
        socket = topology.sockets.get(min(cpus))
        alike = (other for other in topology.nodes.values() if topology.sockets.get(min(other)) == socket)
        return frozenset().union(*alike)
    neighbours = [other for other, place in enumerate(places) if place == node]
    position = neighbours.index(index)
    if mode == "exclusive":
        return _share(_groups(cpus, topology.cores), len(neighbours), position, node)
    complexes = sorted(_groups(cpus, topology.caches), key=lambda group: (-len(group), min(group)))
    return complexes[position % len(complexes)]


def _groups(cpus: CpuSet, group_of: Mapping[int, int]) -> list[CpuSet]:
    """``cpus`` in groups, in the order of their lowest numbers."""
    groups: dict[int, set[int]] = {}
    for cpu in sorted(cpus):
        groups.setdefault(group_of.get(cpu, cpu), set()).add(cpu)
    return [frozenset(group) for _, group in sorted(groups.items())]


def _share(cores: list[CpuSet], workers: int, position: int, node: int) -> CpuSet:
    """An equal share of the cores; the first workers get those that are left over."""
    size, extra = divmod(len(cores), workers)
    if size == 0:
        raise UsageError(
            f"--numa-binding exclusive: NUMA node {node} has {len(cores)} usable cores for {workers} workers: "
            "type --numa-binding node, or start fewer workers"
        )
    start = position * size + min(position, extra)
    return frozenset().union(*cores[start : start + size + (position < extra)])


def read_topology(usable: Collection[int], sys: Path = Path("/sys")) -> Topology:
    """The topology of the ``usable`` CPUs. Where ``/sys`` says nothing there is one node, and each CPU is a core."""
    nodes = {}
    for folder in sorted(sys.glob("devices/system/node/node[0-9]*")):
        cpus = _read(folder / "cpulist", parse_cpu_list, CpuSet()) & CpuSet(usable)
        if cpus:
            nodes[int(folder.name.removeprefix("node"))] = cpus
    cpu_folder = {cpu: sys / f"devices/system/cpu/cpu{cpu}" for cpu in usable}
    return Topology(
        nodes=nodes or {0: frozenset(usable)},
        sockets={cpu: _read(place / "topology/physical_package_id", int, 0) for cpu, place in cpu_folder.items()},
        cores={cpu: _read(place / "topology/thread_siblings_list", _lowest, cpu) for cpu, place in cpu_folder.items()},
        caches={cpu: _last_cache(place / "cache", cpu) for cpu, place in cpu_folder.items()},
    )


def parse_cpu_list(text: str) -> CpuSet:
    """The numbers in a list of the kernel's: ``0-2,4``."""
    ranges = (part.partition("-") for part in text.strip().split(",") if part.strip())
    return frozenset(cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1))


def _lowest(text: str) -> int:
    return min(parse_cpu_list(text))


def _last_cache(folder: Path, cpu: int) -> int:
    levels = [
        (_read(index / "level", int, 0), _read(index / "shared_cpu_list", _lowest, cpu))
        for index in sorted(folder.glob("index[0-9]*"))
        if _read(index / "type", str.strip, "") != "Instruction"
    ]
    return max(levels, key=lambda level: level[0], default=(0, cpu))[1]


def _read(file: Path, parse: Callable[[str], Parsed], otherwise: Parsed) -> Parsed:
    try:
        return parse(file.read_text())
    except (OSError, ValueError):
        return otherwise
