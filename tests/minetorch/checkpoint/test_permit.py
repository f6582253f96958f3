"""A process that is stopped between asking and writing, and comes back when another start has the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minetorch.checkpoint import Store
from minetorch.checkpoint.claim import Launch, Process
from minetorch.checkpoint.fence import Fence, FencedStore
from minetorch.checkpoint.links import sync_links
from minetorch.errors import RunVanishedError, StorageError, SupersededError
from minetorch.log import RunLog

LOGGER = logging.getLogger("tests")
PAYLOADS = [f"g000{number}-000001-s000000001-aaaaaa.pth.tar" for number in (1, 2)]


def start(place: Path, number: int) -> SimpleNamespace:
    """A start of the run in a process of its own, as far as a store and a fence know."""
    store = Store.open(place)
    process = Process(f"node{number}", 7, "1", f"boot-{number}")
    fence = Fence(store.child("models"), logger=LOGGER, process=process, launch=Launch())
    assert fence.claim("replace")
    return SimpleNamespace(store=store, fence=fence, files=FencedStore(store, fence))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def writer(run: Path) -> SimpleNamespace:
    """The first start of a run, which has written files."""
    writer = start(run, 1)
    for name in ("graph/loss.png", "log.txt", "models/mine.pth.tar"):
        writer.files.write(name, b"of the first")
    sync_links(writer.store.child("models"), {"latest.pth.tar": PAYLOADS[0], "epoch_1.pth.tar": PAYLOADS[0]}, LOGGER)
    return writer


def contents(run: Path) -> dict[str, str]:
    paths = (path for path in run.rglob("*") if not path.is_dir() or path.is_symlink())
    return {
        str(path.relative_to(run)): str(path.readlink()) if path.is_symlink() else path.read_text(errors="replace")
        for path in paths
    }


def succeed(run: Path) -> None:
    """Another start takes the run over, and changes everything."""
    successor = start(run, 2)
    models = successor.store.child("models")
    for name in ("graph/loss.png", "models/mine.pth.tar"):
        successor.files.write(name, b"of the second")
    sync_links(models, {"latest.pth.tar": PAYLOADS[1], "epoch_1.pth.tar": PAYLOADS[1]}, LOGGER)
    log = RunLog(successor.store, logging_format="%(message)s")
    log.logger.info("of the second, too")
    log.close()


ACTIONS: dict[str, Callable[[SimpleNamespace, Path], object]] = {
    "writes a picture": lambda writer, file: writer.files.write("graph/loss.png", b"late"),
    "writes a new file": lambda writer, file: writer.files.write("images/new.png", b"late"),
    "uploads a file": lambda writer, file: writer.files.upload(file, "graph/loss.png"),
    "deletes a file": lambda writer, file: writer.files.delete("graph/loss.png"),
    "begins an event file": lambda writer, file: writer.files.create_open("events.out.tfevents.1.minetorch").close(),
    "writes a manifest": lambda writer, file: writer.store.child("models").write("g0001-1.json", b"late"),
    "writes a payload": lambda writer, file: writer.store.child("models").write_stream(
        PAYLOADS[0], lambda to: to.write(b"late")
    ),
    "deletes a payload": lambda writer, file: writer.store.child("models").delete("mine.pth.tar"),
    "moves its links": lambda writer, file: sync_links(
        writer.store.child("models"), {"latest.pth.tar": PAYLOADS[0]}, LOGGER
    ),
    "takes over its log": lambda writer, file: writer.store.keep_beginning("log.txt", 3),
    "gives a sign of life": lambda writer, file: writer.fence._beat(),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_what_it_was_about_to_do_does_not_happen(
    action: str, writer: SimpleNamespace, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "picture"
    file.write_bytes(b"late")
    succeed(run)
    (run / "models/writers/g0002.json").rename(run / "hidden")  # it has asked before, and learns nothing now
    before = contents(run)
    monkeypatch.setattr(writer.fence, "check", lambda: None)
    try:
        ACTIONS[action](writer, file)
    except StorageError as error:
        assert "No such file" in str(error)  # noqa: PT017
    assert contents(run) == before


def test_a_write_that_was_begun_before_is_not_finished(writer: SimpleNamespace, run: Path) -> None:
    """The state of a large model takes long to write."""

    def write(file: Any) -> None:
        file.write(b"begun")
        succeed(run)
        file.write(b"late")

    with pytest.raises(StorageError):
        writer.store.child("models").write_stream(PAYLOADS[0], write)
    assert PAYLOADS[0] not in writer.store.child("models").list()
    with pytest.raises(SupersededError):
        writer.fence.check()
    assert not list(run.rglob(".minetorch-tmp-g0001*"))


def test_its_log_line_is_not_in_the_log_of_its_successor(
    writer: SimpleNamespace, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(writer.store, logging_format="%(message)s")
    log.logger.info("before")
    succeed(run)
    log.logger.info("late")  # no guard at all, as if it had asked before
    assert (run / "log.txt").read_text() == "of the first\nbefore\nof the second, too\n"
    log.close()


def test_its_open_event_file_is_not_one_that_its_successor_writes(writer: SimpleNamespace, run: Path) -> None:
    with writer.files.create_open("events") as file:
        successor = start(run, 2)
        successor.files.write("events", b"")  # as the drawer empties the files of earlier starts
        file.write(b"late")
    assert (run / "events").read_bytes() == b""


def test_the_permission_is_returned_with_the_run_and_can_be_had_again(writer: SimpleNamespace, run: Path) -> None:
    writer.fence.release("stopped early")
    assert not list(run.rglob(".minetorch-tmp*"))
    writer.files.write("results.csv", b"after the training")
    writer.fence.renew()
    assert list(run.rglob(".minetorch-tmp-g0001"))
    writer.files.write("results.csv", b"in the next")
    writer.fence.release("finished")
    start(run, 2)
    with pytest.raises(SupersededError):
        writer.fence.renew()


@pytest.mark.parametrize("gone", ["run", "models", "claim"])
def test_nothing_is_made_where_a_run_was(gone: str, writer: SimpleNamespace, run: Path, tmp_path: Path) -> None:
    path = {"run": run, "models": run / "models", "claim": run / "models/writers/g0001.json"}[gone]
    path.rename(tmp_path / "moved")
    before = contents(tmp_path)
    with pytest.raises(RunVanishedError, match=r"the files of this run are gone: .*g0001.json, .* Bring the files"):
        writer.fence.check()
    writer.fence.release("failed")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("gone", ["run", "models"])
def test_nor_by_a_write_that_did_not_ask(gone: str, writer: SimpleNamespace, run: Path, tmp_path: Path) -> None:
    path = {"run": run, "models": run / "models"}[gone]
    path.rename(tmp_path / "moved")
    before = contents(tmp_path)
    for name in ("graph/new.png", "models/new.json", "models/writers/new.json", "new.txt"):
        with pytest.raises(StorageError):
            writer.store.write(name, b"late")
    assert contents(tmp_path) == before
    assert not path.exists()


def test_another_disk_within_the_run_can_be_written(
    writer: SimpleNamespace, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be renamed to it from the folder of the permission."""
    real = Path.stat

    def stat(path: Path, **options: Any) -> Any:
        found = real(path, **options)
        return SimpleNamespace(st_dev=-1) if path.name == "graph" and not options else found

    monkeypatch.setattr(Path, "stat", stat)
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    seen = []
    rename = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, to: (seen.append(path.parent), rename(path, to)))
    writer.store.write("graph/loss.png", b"there")
    assert seen == [run / "graph"]
