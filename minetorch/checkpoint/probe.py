"""``python -m minetorch.checkpoint.probe URL``: whether a storage can do what checkpoints need of it.

It writes two small files with names of their own, reads, lists and deletes them, and says how long each took. It
makes neither folders nor buckets: where the folder of the URL does not exist yet, it works in the nearest one that
does, from which the folder would be made. Secrets of the URL are never printed.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from minetorch.checkpoint.store import Store
from minetorch.errors import ConfigurationError, MinetorchError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_PAYLOAD = 1 << 20
_RIVALS = 4


@dataclass
class Probe:
    """What a probe of one storage has found."""

    url: str
    """The place that was probed, without secrets."""

    seconds: dict[str, float] = field(default_factory=dict)
    """By step: how long it took. ``list`` comes first and includes connecting; ``write`` and ``read`` move 1 MiB;
    ``create`` is a race of four writers."""

    error: str | None = None
    """What went wrong, the step included; None if every step was done."""

    exclusive: bool | None = None
    """Whether of several creators of one file exactly one wins, at once and in turn; None: not found out."""

    exclusive_error: str | None = None
    """What the storage said if it refused to create a file exclusively at all."""

    left_behind: list[str] = field(default_factory=list)
    """Files that could not be deleted again."""

    @property
    def ok(self) -> bool:
        """Whether checkpoints can be written, read, listed and deleted there."""
        return self.error is None and not self.left_behind


def probe(url: str | os.PathLike[str], *, clock: Callable[[], float] = time.perf_counter) -> Probe:
    """Try a storage out.

    Args:
        url: as for :meth:`Store.open`.
        clock: seconds, for the times in the result.
    """
    try:
        store = _nearest_folder(Store.open(url))
    except MinetorchError as err:
        return Probe(url="", error=str(err))
    found = Probe(store.url)
    token = secrets.token_hex(8)
    attempted: list[str] = []
    try:
        _try_out(store, f"minetorch-probe-{token}", attempted, found, clock)
    except (MinetorchError, FileNotFoundError) as err:
        found.error = found.error or str(err)
    finally:
        found.left_behind = [store.url_of(name) for name in attempted if not _is_gone(store, name)]
    return found


def _try_out(store: Store, name: str, attempted: list[str], found: Probe, clock: Callable[[], float]) -> None:
    @contextmanager
    def timed(step: str) -> Iterator[None]:
        began = clock()
        yield
        found.seconds[step] = clock() - began

    payload, data, claim = secrets.token_bytes(_PAYLOAD), f"{name}-data", f"{name}-claim"
    with timed("list"):
        store.list()
    attempted.append(data)
    with timed("write"):
        store.write(data, payload)
    with timed("read"):
        back = store.read(data)
    if back != payload:
        raise StorageError(f"{store.url_of(data)} was written, but other bytes were read back")
    if data not in store.list(data):
        raise StorageError(f"{store.url_of(data)} was written, but is not listed")
    attempted.append(claim)
    with timed("create"):
        try:
            found.exclusive = _is_exclusive(store, claim)
        except (StorageError, NotImplementedError) as err:  # which is no obstacle to checkpoints
            found.exclusive, found.exclusive_error = False, str(err)
    with timed("delete"):
        store.delete(data)
    if store.exists(data) or store.list(data):
        raise StorageError(f"{store.url_of(data)} was deleted, but is still there")


def _is_exclusive(store: Store, name: str) -> bool:
    """Have several create one file at once, and one more after them."""
    start = threading.Barrier(_RIVALS)

    def create(number: int) -> bool:
        with suppress(threading.BrokenBarrierError):
            start.wait(10)
        return _wins(store, name, number)

    with ThreadPoolExecutor(_RIVALS, thread_name_prefix="minetorch-probe") as pool:
        won = sum(pool.map(create, range(_RIVALS)))
    return won == 1 and not _wins(store, name, _RIVALS)


def _wins(store: Store, name: str, number: int) -> bool:
    try:
        store.create(name, b"%d" % number)
    except FileExistsError:
        return False
    return True


def _is_gone(store: Store, name: str) -> bool:
    """Delete a file that may be there, and say whether it is known to be gone."""
    with suppress(MinetorchError):
        store.delete(name)
    try:
        return not store.exists(name)
    except MinetorchError:
        return False


def _nearest_folder(store: Store) -> Store:
    """The store itself, or the nearest folder above it that exists."""
    while not store.has_folder():
        if store.is_local and Path(store.url).exists():
            raise ConfigurationError(f"{store.url} is a file: give the path of a folder")
        above = os.path.dirname(store.url) if store.is_local else store.url.rstrip("/").rpartition("/")[0]  # noqa: PTH120
        if above.endswith(("/", ":")) and above != "/":
            raise StorageError(f"cannot look at {store.url}: no folder above it exists either")
        store = Store.open(above)
    return store


def main(argv: Sequence[str] | None = None) -> int:
    """Probe the URL on the command line, print what was found, and return 0 if all is well, else 1."""
    parser = argparse.ArgumentParser(prog="python -m minetorch.checkpoint.probe", description=__doc__)
    parser.add_argument("url", metavar="URL", help="a folder or any URL that fsspec knows, such as s3://bucket/runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(argv)
    # What was written is to be deleted, too, when the caller loses patience.
    before = signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    try:
        found = probe(given.url)
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.stdout.write((json.dumps({"ok": found.ok, **asdict(found)}) if given.json else _text(found)) + "\n")
    return 0 if found.ok else 1


def _text(found: Probe) -> str:
    lines = [f"{step:<9} {seconds * 1000:.1f} ms" for step, seconds in found.seconds.items()]
    if found.exclusive is not None:
        lines.append(f"exclusive {'yes' if found.exclusive else 'no: a file can be created twice'}")
    lines += [f"error     {found.error}"] if found.error else []
    lines += [f"left      {url} could not be deleted" for url in found.left_behind]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
