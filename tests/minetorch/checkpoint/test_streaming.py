"""Files of a store, read piece by piece."""

from __future__ import annotations

import io
import threading
import tracemalloc
from collections.abc import Callable

import pytest

from minetorch.checkpoint import Store, streaming
from minetorch.checkpoint.digest import digest_of
from minetorch.checkpoint.streaming import SeekableFile, chunks, digest_file
from minetorch.errors import StorageError

DATA = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_CHUNK", 1000)
    monkeypatch.setattr(streaming, "_LOCAL_CHUNK", 1000)
    monkeypatch.setattr(streaming, "_PAGE", 100)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 9000, 10240])
def test_chunks_are_the_file_in_order(store: Store, size: int, parallel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "is_parallel", parallel)
    store.write("x", DATA[:size])
    pieces = list(chunks(store, "x"))
    assert b"".join(pieces) == DATA[:size]
    assert all(0 < len(piece) <= 1000 for piece in pieces)
    digest = digest_file(store, "x")
    assert (digest.size, str(digest)) == (size, digest_of(DATA[:size]))


def test_no_more_is_fetched_ahead_than_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "is_parallel", True)
    store.write("x", DATA)
    started, lock, read = [0], threading.Lock(), Store.read_range

    def count(self: Store, name: str, start: int, stop: int) -> bytes:
        with lock:
            started[0] += 1
        return read(self, name, start, stop)

    monkeypatch.setattr(Store, "read_range", count)
    for taken, _ in enumerate(chunks(store, "x")):
        assert started[0] <= taken + streaming._AHEAD
    reader = chunks(store, "x")
    next(reader)
    reader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("minetorch-read")]


@pytest.mark.parametrize("parallel", [False, True])
def test_a_failure_in_the_middle(store: Store, parallel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "is_parallel", parallel)
    store.write("x", DATA)
    read = Store.read_range

    def fail(self: Store, name: str, start: int, stop: int) -> bytes:
        if start == 5000:
            raise StorageError("cannot read x: gone")
        return read(self, name, start, stop)

    monkeypatch.setattr(Store, "read_range", fail)
    with pytest.raises(StorageError, match="gone"):
        list(chunks(store, "x"))
    with pytest.raises(FileNotFoundError):
        list(chunks(store, "y"))


def test_a_seekable_file_is_like_any(store: Store) -> None:
    store.write("x", DATA)
    file, other = SeekableFile(store, "x"), io.BytesIO(DATA)
    moves: list[Callable[[io.IOBase], object]] = [
        lambda f: f.read(5),
        lambda f: f.seek(-30, io.SEEK_END),
        lambda f: f.read(),
        lambda f: f.read(1),
        lambda f: f.seek(95),
        lambda f: f.seek(3, io.SEEK_CUR),
        lambda f: f.tell(),
    ]
    for move in moves:
        assert move(file) == move(other)
    assert io.BufferedReader(file).read(500) == other.read(500)
    with pytest.raises(FileNotFoundError):
        SeekableFile(store, "y")


def test_a_seekable_file_keeps_few_pages(store: Store) -> None:
    store.write("x", bytes(1_000_000))
    file = io.BufferedReader(SeekableFile(store, "x"))
    tracemalloc.start()
    while file.read(1000):
        pass
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 200_000
