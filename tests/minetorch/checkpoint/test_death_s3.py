"""As `test_death`, on S3 over HTTP, with the payload uploaded in parts: every request of a save, one after another."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import s3fs
import torch

from minetorch.checkpoint import Checkpoint, Checkpointer, Manifest, Store, s3
from minetorch.errors import StorageError

Make = Callable[..., Checkpointer]
Save = Callable[..., Manifest]
Peek = Callable[..., Checkpoint]

CALL = s3fs.S3FileSystem._call_s3


class Fate:
    """Counts requests, and strikes at one: from then on ("before", "after") or just then ("lost") they fail.

    A writer whose requests all fail is as good as dead, as far as the storage can tell.
    """

    def __init__(self, at: int, kind: str) -> None:
        self.at = at
        self.kind = kind
        self.calls: list[str] = []
        self.lock = threading.Lock()

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        fate = self

        async def call(fs: Any, method: str, *args: Any, **kwargs: Any) -> Any:
            with fate.lock:
                fate.calls.append(method)
                number = len(fate.calls)
            if (number > fate.at and fate.kind != "lost") or (number == fate.at and fate.kind == "before"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            result = await CALL(fs, method, *args, **kwargs)
            if number == fate.at:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return result

        patch.setattr(s3fs.S3FileSystem, "_call_s3", call)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART", 2048)


@pytest.fixture
def folders(bucket: Any) -> Callable[[], Store]:
    root, numbers = Store.open(bucket.url, bucket.options), itertools.count()
    return lambda: root.child(f"case-{next(numbers)}", "models")


def prepared(store: Store, make: Make, save: Save) -> Checkpointer:
    run = make(store, keep_last=1, keep_best=1, grace_s=float("inf"))
    write(run, 1, save, {"val_loss": 0.9}, ["mine"])
    write(run, 2, save, {"val_loss": 0.5}, [])
    return run


def write(run: Checkpointer, value: int, save: Save, metrics: dict[str, float], names: list[str]) -> None:
    state = {"model": torch.full((1200,), float(value)), "more": torch.zeros(900)}
    facts = {"step": value, "epoch": value, "epoch_complete": True, "position": 0, "world_size": 1}
    run.save(state, **facts, metrics=metrics, names=names)


def the_save(run: Checkpointer, save: Save) -> None:
    run._swept = -float("inf")  # a save that also sweeps
    write(run, 3, save, {"val_loss": 0.1}, ["mine"])


def count(store: Store, make: Make, save: Save) -> list[str]:
    run, fate = prepared(store, make, save), Fate(10**9, "before")
    with pytest.MonkeyPatch.context() as patch:
        fate.patch(patch)
        the_save(run, save)
    return fate.calls


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["before", "after", "lost"])
def test_death(kind: str, folders: Callable[[], Store], checkpointer: Make, save: Save, peek: Peek) -> None:
    calls = count(folders(), checkpointer, save)
    assert {"upload_part", "complete_multipart_upload", "put_object", "delete_object"} <= set(calls)
    found = []
    for at, method in enumerate(calls, 1):
        if kind == "lost" and method.startswith(("get", "head", "list")):
            continue
        store = folders()
        run = prepared(store, checkpointer, save)
        with pytest.MonkeyPatch.context() as patch:
            Fate(at, kind).patch(patch)
            failure = failure_of(lambda run=run: the_save(run, save))
        assert failure is None or "Input/output error" in str(failure)
        newest = peek(store)
        found.append(int(newest.state["model"][0]))
        assert found[-1] in ((2, 3) if failure else (3,))
        for name in newest.manifest.aliases:
            assert peek(store, name).state is not None
        successor = checkpointer(store, keep_last=1, keep_best=1)
        assert successor.open(True) is not None
        write(successor, 5, save, {"val_loss": 0.8}, [])
        assert peek(store).state["model"][0] == 5
    if kind != "lost":
        assert found == sorted(found)
        assert set(found) == {2, 3}


def failure_of(action: Callable[[], None]) -> StorageError | None:
    try:
        action()
    except StorageError as err:
        return err
    return None


def test_debris_is_swept_after_the_grace_period_and_nothing_else(
    folders: Callable[[], Store], checkpointer: Make, save: Save, peek: Peek
) -> None:
    store = folders()
    run = prepared(store, checkpointer, save)
    with pytest.MonkeyPatch.context() as patch:
        calls = count(folders(), checkpointer, save)
        Fate(calls.index("complete_multipart_upload") + 1, "before").patch(patch)
        with pytest.raises(StorageError):
            the_save(run, save)
    store.write("g0001-000009-s000000009-ffffff.pth.tar", b"uncommitted")
    store.write("notes.txt", b"theirs")
    assert len(store.unfinished()) == 1
    beside = store.child("writers")
    for grace_s, left in ((float("inf"), 1), (0.0, 0)):
        successor = checkpointer(store, keep_last=1, grace_s=grace_s)
        successor._clock = lambda: time.time() + 10
        successor.open(True)
        write(successor, 4, save, {}, [])
        assert len(store.unfinished()) == left
        assert store.exists("g0001-000009-s000000009-ffffff.pth.tar") == bool(left)
    assert store.read("notes.txt") == b"theirs"
    assert beside.list()
    assert peek(store, "mine").state["model"][0] == 1
