"""The worker of the self-test: ``python -m minetorch_doctor.selftest_worker FOLDER SECONDS``, under the launcher.

The only module of the doctor that imports torch. It is the smallest script that uses the device, the store and the
process group as training does. It saves its report at each stage, so the last stage of a hanging worker is known.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import statistics
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from minetorch_doctor.selftest import LARGE_BYTES, WorkerReport

_CONNECT_SECONDS = 5.0


def main(folder: Path, seconds: float) -> None:
    """Use the device, connect the nodes, run all-reduce: each stage may fail."""
    faulthandler.dump_traceback_later(seconds, exit=True)  # also when the main thread hangs in C code
    env, timeout = os.environ, timedelta(seconds=seconds / 3)
    report = WorkerReport(int(env["LOCAL_RANK"]), int(env["RANK"]), int(env["WORLD_SIZE"]))

    def enter(stage: str) -> None:
        report.stage = stage
        report.save(folder)

    enter("using the device")
    device = use_device(report)
    enter("connecting the nodes")
    any_dist: Any = dist  # torch's types do not export the stores
    store = any_dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), None, is_master=False, timeout=timeout)
    if int(env["GROUP_WORLD_SIZE"]) > 1 and report.local_rank == 0:
        connect_nodes(any_dist.PrefixStore("nodes", store), report)
    enter("creating the process group")
    dist.init_process_group(
        report.backend,
        store=any_dist.PrefixStore("group", store),
        rank=report.rank,
        world_size=report.world_size,
        timeout=timeout,
        device_id=device if device.type != "cpu" else None,
    )
    enter("running all-reduce")
    measure_all_reduce(report, device)
    report.save(folder)
    dist.destroy_process_group()
    faulthandler.cancel_dump_traceback_later()


def use_device(report: WorkerReport) -> torch.device:
    """Compute on the device, which fails where torch has no kernels for the GPU's generation."""
    device = torch.device("cpu")
    report.device = f"CPU with {torch.get_num_threads()} threads each"
    if (kind := os.environ["MINETORCH_DEVICE"]) != "cpu":
        device = torch.device(kind, report.local_rank)
        report.backend = dist.get_default_backend_for_device(device)
        module = torch.get_device_module(device)
        module.set_device(device)
        free, total = (size >> 30 for size in module.mem_get_info(device))
        report.device = f"{module.get_device_name(device)} ({free} of {total} GiB free)"
    ones = torch.ones(64, 64, device=device)
    if (result := float((ones @ ones).sum())) != 64.0**3:
        raise RuntimeError(f"a product of ones on {device} gave {result} instead of {64.0**3}")
    return device


def measure_all_reduce(report: WorkerReport, device: torch.device) -> None:
    """Median seconds of the slowest rank, for a sum of one number and of 64 MiB; raises if a sum is wrong."""
    expected = report.world_size * (report.world_size + 1) / 2

    def once(tensor: torch.Tensor) -> float:
        tensor.fill_(report.rank + 1)
        tensor[0].item()  # waits for the GPU
        began = time.perf_counter()
        dist.all_reduce(tensor)
        tensor[0].item()
        seconds = time.perf_counter() - began
        low, high = float(tensor.min()), float(tensor.max())
        if (low, high) != (expected, expected):
            raise RuntimeError(f"an all-reduce over {report.world_size} ranks gave {low} to {high}, not {expected}")
        return seconds

    def median(tensor: torch.Tensor, times: int) -> float:
        slowest = torch.tensor(statistics.median(once(tensor) for _ in range(times)), device=device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        return float(slowest)

    one, large = torch.zeros(1, device=device), torch.zeros(LARGE_BYTES // 4, device=device)
    once(large)  # the first one connects the ranks
    report.latency = median(one, 50)
    report.large_seconds = median(large, 3)


def connect_nodes(store: Any, report: WorkerReport) -> None:
    """Connect this node to every other node at a free port, and collect the results of all nodes."""
    me, count = int(os.environ["GROUP_RANK"]), int(os.environ["GROUP_WORLD_SIZE"])

    def exchange(topic: str, value: object) -> list[Any]:
        store.set(f"{topic}/{me}", json.dumps(value))
        return [json.loads(store.get(f"{topic}/{node}")) for node in range(count)]

    family, _, _, _, master = socket.getaddrinfo(os.environ["MASTER_ADDR"], 9, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as towards, socket.socket(family, socket.SOCK_STREAM) as server:
        towards.connect(master)  # sends nothing, but chooses this node's own address
        server.bind((towards.getsockname()[0], 0))
        server.listen(count)
        places = exchange("places", (socket.gethostname(), *server.getsockname()[:2]))
        report.nodes = [f"{host} {address}" for host, address, _ in places]
        problems = [problem for node, place in enumerate(places) if node != me and (problem := try_link(*place))]
        # Results are exchanged before any node closes its socket.
        report.broken_links = [problem for problems in exchange("problems", problems) for problem in problems]


def try_link(host: str, address: str, port: int) -> str | None:
    """Connect to another node; the problem in words, None without one."""
    try:
        socket.create_connection((address, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        return f"{socket.gethostname()} cannot connect to {host} at {address} ({error.strerror or error})"
    return None


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
