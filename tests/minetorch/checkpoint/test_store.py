"""The contract of a store, on every storage that claims it."""

from __future__ import annotations

import io
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from minetorch.checkpoint import Store, local_disk, ranges
from minetorch.errors import ConfigurationError, StorageError


def test_reads_what_was_written(store: Store) -> None:
    store.write("a.txt", b"one")
    store.write("graph/loss ünï [1].png", b"")
    assert store.read("a.txt") == b"one"
    assert store.read("graph/loss ünï [1].png") == b""
    assert store.size("a.txt") == 3
    assert store.size("graph/loss ünï [1].png") == 0
    assert store.exists("a.txt")
    assert store.child("graph").exists("loss ünï [1].png")


def test_replaces_what_was_there(store: Store) -> None:
    store.write("a", b"a long one")
    store.write("a", b"short")
    assert store.read("a") == b"short"
    assert store.list() == ["a"]


def test_reads_a_large_file_and_tells_of_each_piece_in_order(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "RANGE", 1000)
    monkeypatch.setattr(local_disk, "_BUFFER", 1000)
    data, pieces = random.Random(1).randbytes(20_500), list[bytes]()
    store.write("x", data)
    content = store.read_large("x", len(data), lambda piece: pieces.append(bytes(piece)))
    assert content == data == b"".join(pieces)


def test_a_large_file_that_is_shorter_than_was_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "RANGE", 1000)
    store.write("x", b"x" * 11_500)
    pieces: list[int] = []
    try:
        content = store.read_large("x", 12_000, lambda piece: pieces.append(len(piece)))
    except StorageError as err:
        assert "cannot read" in str(err)  # noqa: PT017
    else:
        assert len(content) == sum(pieces) == 11_500
    with pytest.raises(FileNotFoundError, match="does not exist"):
        store.read_large("y", 12_000, len)


def test_streams(store: Store) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"one ")
        file.write(memoryview(b"two"))

    store.write_stream("a", write)
    with store.open_read("a") as first, store.open_read("a") as second:
        assert first.read(4) == b"one "
        assert second.read() == b"one two"
        assert first.read() == b"two"


def test_a_stream_that_fails_leaves_the_old_file_and_nothing_else(store: Store) -> None:
    store.write("a", b"old")

    def write(file: BinaryIO) -> None:
        file.write(b"new but ha")
        raise KeyError("the writer's own")

    with pytest.raises(KeyError, match="the writer's own"):
        store.write_stream("a", write)
    assert store.read("a") == b"old"
    assert store.list() == ["a"]
    if store.is_local:
        assert list(store.local_path().iterdir()) == [store.local_path("a")]


def test_creates_only_what_is_not_there(store: Store) -> None:
    store.create("a/claim", b"mine")
    with pytest.raises(FileExistsError, match=r"claim exists already"):
        store.create("a/claim", b"yours")
    assert store.read("a/claim") == b"mine"
    assert store.list("a") == ["a"]
    assert store.child("a").list() == ["claim"]


def test_of_many_creators_one_wins(local_url: str) -> None:
    """On a disk; fsspec's memory files are exclusive within one thread only."""
    store = Store.open(local_url)
    won: list[int] = []

    def create(number: int) -> None:
        try:
            store.create("claim", b"%d" % number * 1000)
        except FileExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("claim") == b"%d" % won[0] * 1000


def test_lists_names_directly_below(store: Store) -> None:
    assert store.list() == []
    for name in ("b", "a", "ab", "folder/x", "folder/y"):
        store.write(name, b"")
    assert store.list() == ["a", "ab", "b", "folder"]
    assert store.list("a") == ["a", "ab"]
    assert store.child("folder").list() == ["x", "y"]
    assert store.child("nowhere", "at all").list() == []


def test_what_is_missing(store: Store) -> None:
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
            store.read("nowhere")
        with pytest.raises(FileNotFoundError):
            store.open_read("nowhere")
        with pytest.raises(FileNotFoundError):
            store.size("nowhere")
        assert not store.exists("nowhere")
        store.delete("nowhere")
        store.write("folder/x", b"")
    assert not store.exists("folder")
    assert store.read_many(["nowhere", "folder/x"]) == {"folder/x": b""}


def test_deletes_exactly_that_file(store: Store) -> None:
    for name in ("a1", "a[1]", "a*"):
        store.write(name, b"")
    store.delete("a[1]")
    store.delete("a*")
    assert store.list() == ["a1"]


def test_uploads(store: Store, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"x" * 3_000_000)
    store.upload(tmp_path / "local", "runs/events")
    assert store.read("runs/events") == b"x" * 3_000_000


@pytest.mark.parametrize("name", ["", "..", ".", "/etc/passwd", "a/../b", "a//b", "a/", "a\0b"])
def test_names_may_not_escape(store: Store, name: str) -> None:
    calls: list[Callable[[], Any]] = [
        *[lambda call=call: call(name) for call in (store.read, store.child, store.delete, store.exists)],
        lambda: store.write(name, b""),
        lambda: store.create(name, b""),
        lambda: store.child("a", name),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match="is not a name below a folder"):
            call()


def test_paths_for_people(store: Store) -> None:
    below = store.child("a", "b/c")
    assert below.url == f"{store.url}/a/b/c"
    assert below.url_of("x") == f"{store.url}/a/b/c/x"
    assert below.is_local == store.is_local
    if store.is_local:
        assert store.local_path("x") == Path(store.url_of("x"))
        assert store.local_path() == Path(store.url)
    else:
        with pytest.raises(StorageError, match="no path on this machine"):
            store.local_path("x")


def test_finds_a_file_by_its_whole_path(store: Store) -> None:
    store.write("models/x", b"1")
    folder, name = store.child("other").locate(store.url_of("models/x"))
    assert name == "x"
    assert folder.read(name) == b"1"


@pytest.mark.parametrize("path", ["~/runs", "file://~/runs"])
def test_a_local_path_is_made_whole(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Store.open(path).url == str(tmp_path / "runs")
    assert Store.open(Path("a/../b")).url == str(tmp_path / "b")
    assert Store.open("here").is_local


def test_opening_makes_no_client_and_touches_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda *_, **__: pytest.fail("a client was made"))
    Store.open("s3://bucket/run", {"key": "k"}).child("models").url_of("x")
    Store.open(tmp_path / "run").child("models")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("url", "words"), [("nosuch://x", "no storage is known as nosuch://"), ("", "is needed")])
def test_what_is_no_url(url: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Store.open(url)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: str) -> type:
        raise ImportError(f"Install {protocol}fs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(ConfigurationError, match=r"pip install 'minetorch\[s3\]'"):
        Store.open("s3://bucket/run")
    with pytest.raises(ConfigurationError, match="Install gsfs"):
        Store.open("gs://bucket/run")


def test_errors_keep_the_storages_words_but_not_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open("memory://me:hunter2@host/run?sig=s1gn", {"secret": "t0psecret", "client": {"token": "t0ken"}})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no: hunter2 t0psecret t0ken sig=s1gn me:hunter2")

    monkeypatch.setattr(MemoryFileSystem, "ls", refuse)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    for call in (store.list, lambda: store.read("x"), lambda: store.write("x", b""), lambda: store.create("x", b"")):
        with pytest.raises(StorageError, match=r"memory://host/run.*: no: .*\(PermissionError\)") as caught:
            call()
        assert caught.value.__cause__ is None
        for secret in ("hunter2", "t0psecret", "t0ken", "s1gn"):
            assert secret not in str(caught.value) + repr(store) + store.url


def test_a_storage_that_gives_no_reason(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.setattr(type(store._files), "read", refuse)
    with pytest.raises(StorageError, match=r"cannot read .*: it gave no reason \(OSError\)"):
        store.read("x")


def test_a_folder_that_is_a_file_is_not_empty(local_url: str) -> None:
    Store.open(local_url).write("models", b"")
    with pytest.raises(StorageError, match=r"cannot list .*Not a directory"):
        Store.open(local_url).child("models").list()
    with pytest.raises(StorageError, match=r"cannot write "):
        Store.open(local_url).child("models").write("x", b"")


def test_folders_are_never_made_where_there_are_none(memory_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("mkdir", "makedirs", "mkdirs"):
        monkeypatch.setattr(MemoryFileSystem, method, lambda *_, **__: pytest.fail("a folder was made"))
    store = Store.open(memory_url)
    store.write("a/b", b"")
    store.create("c/d", b"")
    store.write_stream("e/f", lambda file: file.write(b""))


def test_a_memory_reader_does_not_move_another(memory_url: str) -> None:
    store = Store.open(memory_url)
    store.write("a", b"abc")
    assert isinstance(store.open_read("a"), io.BytesIO)
    store.open_read("a").read()
    assert store.open_read("a").read() == b"abc"


def test_entries_say_what_is_there(store: Store) -> None:
    assert store.entries() == []
    store.write("b [1] ünï", b"12345")
    store.write("folder/x", b"")
    file, folder = store.entries()
    assert (file.name, file.is_folder, file.size, file.is_link) == ("b [1] ünï", False, 5, False)
    assert (folder.name, folder.is_folder) == ("folder", True)
    assert file.modified is not None
    assert abs(file.modified - time.time()) < 60
    assert [entry.name for entry in store.child("folder").entries()] == ["x"]


def test_entries_tell_links(local_url: str, tmp_path: Path) -> None:
    store = Store.open(local_url)
    store.write("file", b"12345")
    store.write("folder/x", b"")
    for name in ("file", "folder"):
        store.local_path(f"to {name}").symlink_to(name)
    links = {entry.name: entry.is_folder for entry in store.entries() if entry.is_link}
    assert links == {"to file": False, "to folder": True}


def test_reads_ranges(store: Store) -> None:
    store.write("x", b"0123456789")
    assert store.read_range("x", 0, 10) == b"0123456789"
    assert store.read_range("x", 3, 5) == b"34"
    assert store.read_range("x", 9, 10) == b"9"
    assert store.read_range("x", 4, 4) == b""
    with pytest.raises(FileNotFoundError):
        store.read_range("nowhere", 0, 1)


def test_names_and_parents(store: Store) -> None:
    below = store.child("a", "b")
    assert below.name == "b"
    above = below.parent()
    assert above is not None
    assert (above.name, above.url) == ("a", store.child("a").url)
    below.write("x", b"1")
    assert above.child("b").read("x") == b"1"
    top = store.parent()
    assert top is not None
    assert top.child(store.name).child("a", "b").read("x") == b"1"
    while top is not None:
        last, top = top, top.parent()
    assert last.url in ("/", f"{store.url.rpartition('/')[0]}")


def test_the_parent_of_a_remote_place_is_reached_in_the_same_way() -> None:
    store = Store.open("s3://bucket/runs/plan-a", {"key": "k"})
    parent = store.parent()
    assert parent is not None
    assert (parent.url, parent._files.options) == ("s3://bucket/runs", {"key": "k"})  # type: ignore[attr-defined]
    assert Store.open("s3://bucket").parent() is None
