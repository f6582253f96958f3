"""A writer dies, or is refused, at every single storage call of a save, before it, in it or after it.

Whatever happens, who comes next finds the old state or the new one: never nothing, never a part, and no name that
points nowhere. The storage calls are those of the operating system on a disk, and those of fsspec elsewhere.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from minetorch.checkpoint import Checkpoint, Checkpointer, Manifest, Store
from minetorch.errors import StorageError, SupersededError

Make = Callable[..., Checkpointer]
Save = Callable[..., Manifest]
Peek = Callable[..., Checkpoint]

FDOPEN = os.fdopen
CALLS: dict[str, list[tuple[Any, str]]] = {
    "local": [
        *[(os, name) for name in ("open", "fsync", "fdopen")],
        *[(Path, name) for name in ("replace", "unlink", "mkdir", "symlink_to", "iterdir", "readlink", "read_bytes")],
    ],
    "memory": [(MemoryFileSystem, name) for name in ("pipe_file", "rm_file", "cat_file", "ls", "info")],
}


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncs are still calls that fate can strike, but cost nothing: these deaths are not power cuts."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Death(BaseException):
    """Not an Exception: a dead process handles nothing."""


class Fate:
    """Counts storage calls, and strikes at one of them.

    `before` and `after` kill: from then on every call fails, as those of a dead process do. `refused` and `lost`
    are errors of the storage, before and after it obeyed, that the process survives.
    """

    tears = True

    def __init__(self, at: int, kind: str) -> None:
        self.calls = 0
        self.at = at
        self.kind = kind

    def strike(self, before: bool) -> None:
        if before:
            self.calls += 1
        dead = self.kind in ("before", "after")
        if dead and self.calls > self.at:
            raise Death
        if self.calls == self.at and before == (self.kind in ("before", "refused")):
            raise Death if dead else OSError(errno.EIO, os.strerror(errno.EIO))

    def bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.strike(before=True)
            result = function(*args, **kwargs)
            if function is FDOPEN:
                return self.bind_file(result)
            self.strike(before=False)
            return result

        return call

    def bind_file(self, file: Any) -> Any:
        fate = self

        class File:
            """Writes half of what it is given when fate strikes after a write began."""

            def write(self, data: bytes) -> int:
                fate.strike(before=True)
                half = memoryview(data)[: len(data) // 2]
                if fate.tears and fate.calls == fate.at:
                    file.write(half)
                fate.strike(before=False)
                return int(file.write(data))

            def __enter__(self) -> File:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

        return File()


class Moment(Fate):
    """Lets something happen before or after a storage call."""

    tears = False

    def __init__(self, at: int, kind: str, happen: Callable[[], object]) -> None:
        super().__init__(at, kind)
        self.happen = happen
        self.happening = False

    def strike(self, before: bool) -> None:
        if self.happening:
            return
        self.calls += before
        if self.calls == self.at and before == (self.kind == "before"):
            self.happening = True
            self.happen()
            self.happening = False


@contextmanager
def struck(backend: str, fate: Fate) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in CALLS[backend]:
            patch.setattr(owner, name, fate.bind(getattr(owner, name)))
        yield


def folder(backend: str, tmp_path: Path, memory_url: str, case: str) -> Store:
    return Store.open(str(tmp_path) if backend == "local" else memory_url).child(case, "models")


def prepared(store: Store, make: Make, save: Save) -> Checkpointer:
    """A run whose next save is best, ends an epoch, moves a name and drops two older ones."""
    run = make(store, keep_last=2, keep_best=1)
    save(run, 1, metrics={"val_loss": 0.9}, names=["mine"])
    save(run, 2, metrics={"val_loss": 0.5})
    save(run, 3, metrics={"val_loss": 0.7})
    return run


def the_save(run: Checkpointer, save: Save) -> None:
    save(run, 4, metrics={"val_loss": 0.1}, names=["mine"])


def check(store: Store, make: Make, save: Save) -> int:
    """What the next process finds, which is whole; and its own save succeeds."""
    newest = make(store).open(True)
    assert newest is not None
    assert newest.manifest is not None
    value = int(newest.state["model"][0])
    assert value in (3, 4)
    assert curve_of(newest) == value
    for name, target in newest.manifest.aliases.items():
        named = make(store).open(name)
        assert named is not None
        assert named.manifest is not None
        assert named.manifest.name == target
    for manifest in make(store).list():  # no manifest without what it commits
        found = make(store).open(manifest.name)
        assert found is not None
        assert curve_of(found) == found.state["model"][0]
    if store.is_local:
        for path in store.local_path().iterdir():
            if path.is_symlink():
                assert "model" in torch.load(path, weights_only=True)
    successor = make(store, keep_last=2, keep_best=1)
    successor.open(True)
    save(successor, 5, metrics={"val_loss": 0.8})
    after = make(store).open(True)
    assert after is not None
    assert after.state["model"][0] == 5
    check_swept(store, make, save)
    return value


def curve_of(checkpoint: Checkpoint) -> float:
    """The one point in a checkpoint's file of curves."""
    points = checkpoint.state["drawer"]["graphs"]["loss"]["train"]
    assert points.shape == (2, 1)
    return float(points[1, 0])


def check_swept(store: Store, make: Make, save: Save) -> None:
    """A start that sweeps at once leaves no file that its manifests do not name."""
    run = make(store, keep_last=2, keep_best=1, grace_s=-1e12)
    run.open(True)
    save(run, 6, metrics={"val_loss": 0.9})
    run.tidy()
    named = {file for manifest in run.list() for file in manifest.key.files}
    left = {name for name in store.list("g") if not store.is_link(name)}
    assert left == named


def count(backend: str, store: Store, make: Make, save: Save) -> int:
    run, fate = prepared(store, make, save), Fate(10**9, "before")
    with struck(backend, fate):
        the_save(run, save)
    return fate.calls


@pytest.mark.parametrize("kind", ["before", pytest.param("after", marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", CALLS)
def test_death(backend: str, kind: str, tmp_path: Path, memory_url: str, checkpointer: Make, save: Save) -> None:
    calls = count(backend, folder(backend, tmp_path, memory_url, "count"), checkpointer, save)
    assert calls >= (30 if backend == "local" else 5)
    found = []
    for at in range(1, calls + 1):
        store = folder(backend, tmp_path, memory_url, f"case {at}")
        run = prepared(store, checkpointer, save)
        with struck(backend, Fate(at, kind)), pytest.raises(Death):
            the_save(run, save)
        found.append(check(store, checkpointer, save))
    # One commit: old up to some call, new from there on.
    assert found == sorted(found)
    assert set(found) == {3, 4}


@pytest.mark.parametrize("kind", ["lost", pytest.param("refused", marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", CALLS)
def test_an_error_that_the_writer_survives(
    backend: str, kind: str, tmp_path: Path, memory_url: str, checkpointer: Make, save: Save, peek: Peek
) -> None:
    calls = count(backend, folder(backend, tmp_path, memory_url, "count"), checkpointer, save)
    for at in range(1, calls + 1):
        store = folder(backend, tmp_path, memory_url, f"case {at}")
        run = prepared(store, checkpointer, save)
        with struck(backend, Fate(at, kind)):
            failure = failure_of(lambda run=run: the_save(run, save))
        assert failure is None or "Input/output error" in str(failure)
        assert peek(store).state["model"][0] in ((4,) if failure is None else (3, 4))
        the_save(run, save)  # the same writer goes on
        assert check(store, checkpointer, save) == 4


@pytest.mark.parametrize("when", ["after", pytest.param("before", marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", CALLS)
def test_a_successor_at_any_moment(
    backend: str, when: str, tmp_path: Path, memory_url: str, checkpointer: Make, save: Save, peek: Peek
) -> None:
    """The writer is not dead, but stopped at any one of its calls, and goes on when another start has the run."""
    calls = count(backend, folder(backend, tmp_path, memory_url, "count"), checkpointer, save)
    found = []
    for at in range(1, calls + 1):
        store = folder(backend, tmp_path, memory_url, f"case {at}")
        old, new = prepared(store, checkpointer, save), checkpointer(store, keep_last=2, keep_best=1)
        resumed: list[Checkpoint] = []
        with struck(backend, Moment(at, when, lambda new=new, resumed=resumed: resumed.append(new.open(True)))):
            is_superseded(lambda old=old: the_save(old, save))
        if not resumed:
            continue  # the call raised, as a look for what is not there does
        [source] = resumed
        found.append(int(source.state["model"][0]))
        for name in (True, "latest", source.manifest.name, "mine", "best"):  # what its successor saw is what there is
            assert peek(store, name).state is not None
        assert peek(store).manifest == source.manifest
        assert peek(store, "mine").manifest.name == source.manifest.aliases["mine"]
        save(new, 5, metrics={"val_loss": 0.8})
        assert peek(store).state["model"][0] == 5
        assert is_superseded(lambda old=old: the_save(old, save))
        assert peek(store).state["model"][0] == 5
    assert found == sorted(found)
    assert set(found) == {3, 4}


def is_superseded(action: Callable[[], None]) -> bool:
    try:
        action()
    except SupersededError:
        return True
    return False


def failure_of(action: Callable[[], None]) -> StorageError | None:
    try:
        action()
    except StorageError as err:
        return err
    return None


SAVES_FOR_EVER = """
import itertools, logging, sys, torch
from minetorch.checkpoint import Checkpointer, Store
run = Checkpointer(Store.open(sys.argv[1]), keep_last=2, logger=logging.getLogger())
found = run.open(True)
for step in itertools.count(1 + int(found.state["w"][0]) if found else 1):
    run.save({"w": torch.full((200_000,), float(step))}, step=step, epoch=step, epoch_complete=True, position=0,
             world_size=1, metrics={"val_loss": 1 / step})
    print(step, flush=True)
"""


def test_a_real_kill(tmp_path: Path, checkpointer: Make) -> None:
    reported = 0
    with subprocess.Popen(
        [sys.executable, "-c", SAVES_FOR_EVER, str(tmp_path / "models")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        reported = int(process.stdout.read().split()[-1])
    found = checkpointer(Store.open(tmp_path / "models")).open(True)
    assert found is not None
    assert found.state["w"].unique().tolist() in ([reported], [reported + 1])
