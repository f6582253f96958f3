"""What ``minetorch-launch doctor`` has the workers do: ``python -m minetorch_launch.doctor.trial``, under a launcher.

The one part of the doctor that imports torch, for it is a training script: the smallest that uses the device, the
store, the process group and the signals as training does. Each worker writes what it finds to
``DIR/worker_LOCALRANK.json`` after every stage, so that the last stage of one that hangs is known.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import socket
import statistics
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minetorch_launch import joining

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""What stops a worker, and what tells it that its time runs out."""

_LARGE_MIB = 64
_PINGS = 10
_CONNECT_SECONDS = 5.0


class Notes:
    """What this worker has found so far, on disk."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / f"worker_{os.environ['LOCAL_RANK']}.json"
        self._known: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "rank": int(os.environ["RANK"]),
            "world_size": int(os.environ["WORLD_SIZE"]),
            "stage": "starting",
        }

    def __call__(self, **found: Any) -> None:
        """Add to them."""
        self._known |= found
        # At once, because the doctor may be reading.
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(self._known), encoding="utf-8")
        new.replace(self._file)


def main(argv: Sequence[str] | None = None) -> None:
    """Go through the stages of one of the two trials."""
    parser = argparse.ArgumentParser(prog="python -m minetorch_launch.doctor.trial")
    parser.add_argument("kind", choices=("training", "signals"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("seconds", type=float, help="after which the worker shows its stack and ends")
    given = parser.parse_args(argv)
    # Even amid C code, and even when the doctor is no longer there to end us.
    faulthandler.dump_traceback_later(given.seconds, exit=True)
    notes = Notes(given.folder)
    if given.kind == "training":
        train(notes, given.seconds)
    else:
        await_stop(notes, given.seconds)
    faulthandler.cancel_dump_traceback_later()


def train(notes: Notes, seconds: float) -> None:
    """Device, links between nodes, all-reduce: each may fail, and the later ones do not hide it."""
    notes(signals=deliverable_signals())
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    cuda = os.environ.get("MINETORCH_DEVICE") == "cuda"
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    notes(stage="using the device")
    notes(device=_use_device(torch, device))
    notes(stage="connecting to the store")
    patience = timedelta(seconds=seconds / 3)
    store, rank, world_size = next(rendezvous("env://", timeout=patience))
    if int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1 and os.environ["LOCAL_RANK"] == "0":
        notes(stage="connecting the nodes")
        notes(nodes=meet_nodes(PrefixStore("nodes", store)))
    notes(stage="making the process group")
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=PrefixStore("group", store),
        rank=rank,
        world_size=world_size,
        timeout=patience,
        device_id=device if cuda else None,
    )
    notes(stage="all-reduce")
    measured = measure_all_reduce(torch, device)
    notes(all_reduce=measured, private_bytes=private_bytes(), stage="leaving")
    dist.destroy_process_group()
    notes(stage="done")


def _use_device(torch: Any, device: Any) -> dict[str, Any]:
    """Compute something there, which fails where torch has no kernels for the GPU's generation."""
    found: dict[str, Any] = {"kind": device.type, "threads": torch.get_num_threads()}
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError("torch.cuda.is_available() is False: the driver and this torch do not go together")
        torch.cuda.set_device(device)
        free, total = torch.cuda.mem_get_info(device)
        found |= {
            "name": torch.cuda.get_device_name(device),
            "capability": list(torch.cuda.get_device_capability(device)),
            "free_bytes": free,
            "total_bytes": total,
        }
    ones = torch.ones(64, 64, device=device)
    total_sum = float((ones @ ones).sum())
    if total_sum != 64.0**3:
        raise RuntimeError(f"a product of ones on {device} came out as {total_sum}, not {64.0**3}")
    return found


def measure_all_reduce(torch: Any, device: Any) -> dict[str, float]:
    """Median seconds of a sum of one number and of 64 MiB over all ranks, as the slowest rank sees it.

    Raises:
        RuntimeError: a sum is wrong.
    """
    dist = torch.distributed
    world = dist.get_world_size()
    due = world * (world + 1) / 2

    def once(tensor: Any) -> float:
        tensor.fill_(dist.get_rank() + 1)
        _wait_for(torch, device)
        began = time.perf_counter()
        dist.all_reduce(tensor)
        _wait_for(torch, device)
        took = time.perf_counter() - began
        low, high = float(tensor.min()), float(tensor.max())
        if (low, high) != (due, due):
            raise RuntimeError(f"an all-reduce over {world} ranks came out as {low} to {high}, not {due}")
        return took

    def median(tensor: Any, times: int) -> float:
        slowest = torch.tensor(statistics.median(once(tensor) for _ in range(times)), device=device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        return float(slowest)

    tiny, large = torch.zeros(1, device=device), torch.zeros(_LARGE_MIB << 18, device=device)
    once(tiny)
    first = median(large, 1)  # the slowest rank's, so that all ranks come to the same number of times
    return {
        "tiny_seconds": median(tiny, 50),
        "large_seconds": median(large, max(3, min(9, int(2 / first)))),
        "large_bytes": _LARGE_MIB << 20,
    }


def _wait_for(torch: Any, device: Any) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def private_bytes(smaps: Path = Path("/proc/self/smaps_rollup")) -> int:
    """Bytes of memory that this process shares with no other."""
    total = 0
    with suppress(OSError):
        for line in smaps.read_text().splitlines():
            if line.startswith("Private_"):
                total += int(line.split()[1]) * 1024
    return total


def deliverable_signals() -> dict[str, str]:
    """Of each signal: ``ok``; or that this process was started with it ``ignored``; or it does not arrive."""
    return {signum.name: _deliver(signum) for signum in SIGNALS}


def _deliver(signum: signal.Signals) -> str:
    came = []
    before = signal.signal(signum, lambda *_: came.append(signum))
    os.kill(os.getpid(), signum)
    end = time.monotonic() + 1
    while not came and time.monotonic() < end:
        time.sleep(0.001)
    if before is not None:
        signal.signal(signum, before)
    if not came:
        return "blocked" if signum in signal.pthread_sigmask(signal.SIG_BLOCK, ()) else "lost"
    return "ignored" if before is signal.SIG_IGN else "ok"


def await_stop(notes: Notes, seconds: float) -> None:
    """Note which signals the launcher passes on, and when, until one of them is a stop."""
    came: dict[str, float] = {}
    for signum in SIGNALS:
        signal.signal(signum, lambda number, _: came.setdefault(signal.Signals(number).name, time.time()))
    notes(stage="waiting for signals")
    end, seen = time.monotonic() + seconds, 0
    while time.monotonic() < end and not {"SIGTERM", "SIGINT"} & set(came):
        time.sleep(0.001)
        if len(came) > seen:
            seen = len(came)
            notes(came=dict(came))
    notes(came=dict(came), stage="done")


def meet_nodes(store: Any) -> list[dict[str, Any]]:
    """Connect this node to every other, and tell all what came of it.

    Args:
        store: what the nodes have in common.

    Returns:
        By node: its host name, address, interface, and links to the others.
    """
    me, count = int(os.environ["GROUP_RANK"]), int(os.environ["GROUP_WORLD_SIZE"])
    meeting_place = socket.getaddrinfo(os.environ["MASTER_ADDR"], None, type=socket.SOCK_STREAM)[0][4][0]
    address = joining.address_towards(str(meeting_place), int(os.environ["MASTER_PORT"]))
    with joining.listen(address, 0) as server:
        threading.Thread(target=answer, args=(server,), daemon=True).start()
        place = {"host": socket.gethostname(), "address": address, "interface": joining.interface_of(address)}
        _tell(store, "place", me, {**place, "port": server.getsockname()[1]})
        places = list(_told(store, "place", count))
        links = [connect(to, places[to]["address"], places[to]["port"]) for to in range(count) if to != me]
        _tell(store, "links", me, links)
        known = zip(places, _told(store, "links", count), strict=True)
        return [{**place, "links": links} for place, links in known]


def _tell(store: Any, topic: str, node: int, data: object) -> None:
    store.set(f"{topic}/{node}", json.dumps(data))


def _told(store: Any, topic: str, count: int) -> Iterator[Any]:
    for node in range(count):
        yield json.loads(store.get(f"{topic}/{node}"))


def connect(to: int, address: str, port: int) -> dict[str, Any]:
    """Connect, and compare clocks: of several questions the one with the quickest answer is the surest."""
    try:
        with socket.create_connection((address, port), timeout=_CONNECT_SECONDS) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answers = [_ask(connection) for _ in range(_PINGS)]
    except OSError as error:
        return {"to": to, "error": error.strerror or str(error) or type(error).__name__}
    round_trip, offset = min(answers)
    return {"to": to, "error": "", "round_trip": round_trip, "offset": offset}


def _ask(connection: socket.socket) -> tuple[float, float]:
    """Seconds there and back, and by how much the other's clock is ahead (as NTP reckons it: RFC 5905, section 8)."""
    asked = time.time_ns()
    connection.sendall(b"?")
    answer = b""
    while len(answer) < 8:
        part = connection.recv(8 - len(answer))
        if not part:
            raise ConnectionResetError("it closed the connection")
        answer += part
    heard = time.time_ns()
    there = int.from_bytes(answer, "big")
    return (heard - asked) / 1e9, (there - (asked + heard) / 2) / 1e9


def answer(server: socket.socket, clock: Callable[[], int] = time.time_ns) -> None:
    """Tell whoever asks what ``clock`` shows, in ns, until the listening socket is closed."""
    with suppress(OSError):
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_answer_one, args=(connection, clock), daemon=True).start()


def _answer_one(connection: socket.socket, clock: Callable[[], int]) -> None:
    with suppress(OSError), connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while connection.recv(1):
            connection.sendall(clock().to_bytes(8, "big"))


if __name__ == "__main__":
    main()
