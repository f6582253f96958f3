"""Claims in a storage: who gets a run, how long it takes, and what a replaced writer can still do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minetorch.checkpoint import Checkpointer, Manifest, Store
from minetorch.checkpoint import fence as fences
from minetorch.checkpoint.claim import CLAIMS, Claim, Launch, Process
from minetorch.checkpoint.fence import LEASE_S, Fence, FencedStore
from minetorch.errors import RunInUseError, StorageError, SupersededError

Make = Callable[..., Checkpointer]
Save = Callable[..., Manifest]
Peek = Callable[..., Any]


class Time:
    """A clock that goes on only while somebody sleeps, and what happens meanwhile."""

    def __init__(self) -> None:
        self.now = 0.0
        self.meanwhile: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


def other(number: int) -> Process:
    return Process(f"node{number}", 7, "1", f"boot-{number}")


@pytest.fixture
def start(models: Store) -> Callable[..., Fence]:
    def start(number: int, time: Time | None = None, launch: Launch | None = None, **options: Any) -> Fence:
        time = time or Time()
        return Fence(
            Store.open(models.url),  # each start is a process, and has a store of its own
            logger=logging.getLogger("tests"),
            process=other(number),
            launch=launch or Launch(),
            clock=lambda: 1000.0,
            sleep=time.sleep,
            monotonic=lambda: time.now,
            **options,
        )

    return start


def test_generations_count_up(start: Callable[..., Fence], models: Store) -> None:
    models.write("g0041-000001-s000000001-abcdef.pth.tar", b"of a time before there were claims")
    for generation in (42, 43, 44):
        fence = start(1)
        assert fence.claim("replace")
        assert fence.generation == generation


def test_a_process_elsewhere_that_gives_no_sign_of_life_is_gone_after_the_lease(start: Callable[..., Fence]) -> None:
    start(1).claim()
    time = Time()
    assert start(2, time).claim()
    assert LEASE_S <= time.now <= LEASE_S + 2


@pytest.mark.parametrize("policy", ["refuse", "wait"])
def test_one_that_ended_is_not_waited_for(start: Callable[..., Fence], policy: Any) -> None:
    first = start(1)
    first.claim()
    first.release()
    time = Time()
    assert start(2, time).claim(policy)
    assert time.now == 0


def test_a_later_attempt_of_the_same_launch_does_not_wait(start: Callable[..., Fence]) -> None:
    start(1, launch=Launch("slurm-1", (0, 0))).claim()
    time = Time()
    assert start(2, time, launch=Launch("slurm-1", (1, 0))).claim()
    assert time.now == 0


def test_one_that_lives_is_refused_or_waited_for(start: Callable[..., Fence], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first, time = start(1), Time()
    first.claim()
    time.meanwhile = first._beat
    with pytest.raises(RunInUseError, match=r"process 7 on node1, since .*Stop that one first.*if_running='wait'"):
        start(2, time).claim("refuse")
    waiting = start(2, time)
    assert not waiting.claim("wait", patience_s=60)
    assert time.now > 60
    time.meanwhile = lambda: first.release() if time.now > 100 else first._beat()
    assert waiting.claim("wait")
    assert 100 < time.now < 105
    assert caplog.text.count("waiting until it ends") == 1


def test_it_can_be_replaced_and_says_by_whom(start: Callable[..., Fence], models: Store, tmp_path: Path) -> None:
    first, second = start(1), start(2)
    first.claim()
    first.check()
    assert second.claim("replace")
    log = FencedStore(models, first)
    file = tmp_path / "x"
    file.write_bytes(b"theirs")
    for action in (
        first.check,
        lambda: log.write("x", b""),
        lambda: log.delete("x"),
        lambda: log.upload(file, "x"),
        log.check,
    ):
        with pytest.raises(SupersededError, match=r"process 7 on node2, since 1970-.*; its start number 2, this one's"):
            action()
    assert "x" not in models.list()
    second.check()
    FencedStore(models, second).write("x", b"mine")
    first.release()  # which leaves its successor's claim alone
    second.check()


def test_a_sign_of_life_is_also_a_look_for_a_successor(start: Callable[..., Fence]) -> None:
    first = start(1)
    first.claim()
    start(2).claim("replace")
    assert first.broken is None
    first._beat()
    assert first.broken is not None


def test_signs_of_life_come_from_a_thread_that_ends(
    start: Callable[..., Fence], models: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fences, "BEAT_S", 0.01)
    beaten = threading.Event()
    first = start(1)
    first.claim()
    beat = first._beat

    def fail_once_then_beat() -> None:
        monkeypatch.setattr(first, "_beat", lambda: (beat(), beaten.set()))
        raise StorageError("for a moment")

    monkeypatch.setattr(first, "_beat", fail_once_then_beat)
    first.watch()
    assert beaten.wait(30)
    first.release()
    assert not any(thread.name == "minetorch-fence" for thread in threading.enumerate())
    claim = Claim.from_json(models.child(CLAIMS).read("g0001.json"))
    assert claim is not None
    assert claim.ended
    assert claim.beat >= 1


def test_of_two_at_once_one_gets_it(start: Callable[..., Fence]) -> None:
    """Between looking and creating, another is faster."""
    first, second = start(1), start(2)
    create = second._create

    def late(generation: int) -> None:
        if first.generation == 0:
            first.claim()
        create(generation)

    second._create = late  # type: ignore[method-assign]
    second.claim("replace")
    assert (first.generation, second.generation) == (1, 2)


def test_many_at_once_get_different_generations(start: Callable[..., Fence]) -> None:
    claimers = [start(number) for number in range(12)]
    threads = [threading.Thread(target=fence.claim, args=("replace",)) for fence in claimers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(fence.generation for fence in claimers) == list(range(1, 13))
    newest = max(claimers, key=lambda fence: fence.generation)
    newest.check()
    for fence in claimers:
        if fence is not newest:
            with pytest.raises(SupersededError):
                fence.check()


class Storage:
    """A store whose exclusive creation is as a lost answer, or a lesser server, makes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        create = Store.create

        def created(store: Store, name: str, data: bytes) -> None:
            if kind == "unknown":
                raise NotImplementedError("501")
            if kind == "ignored":
                store.write(name, data)
                return
            create(store, name, data)
            raise FileExistsError("of my own first try, whose answer was lost")

        monkeypatch.setattr(Store, "create", created)


def test_a_claim_whose_answer_was_lost_is_still_a_claim(
    start: Callable[..., Fence], monkeypatch: pytest.MonkeyPatch
) -> None:
    Storage(monkeypatch, "lost")
    fence = start(1)
    fence.claim()
    assert fence.generation == 1


@pytest.mark.parametrize("kind", ["unknown", "ignored"])
def test_a_storage_that_cannot_create_exclusively_is_named_once_and_the_last_one_wins(
    start: Callable[..., Fence], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    Storage(monkeypatch, kind)
    time = Time()
    first, second = start(1, time), start(2)
    time.meanwhile = lambda: second._create(1) if second.generation == 0 else None  # while the first one settles
    first.claim("replace")
    assert second.generation == 1
    assert first.generation == 2
    with pytest.raises(SupersededError):
        second.check()
    assert "cannot create a file only where there is none" in caplog.text


def test_the_look_of_a_later_start_makes_a_late_commit_void(
    models: Store, checkpointer: Make, save: Save, peek: Peek, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that is stopped between its last look and its commit, and comes back a day later."""
    old, new = checkpointer(models, keep_last=1), checkpointer(models, keep_last=1)
    first = save(old, 1, names=["mine"], metrics={})
    write = Store.write

    def late(store: Store, name: str, data: bytes) -> None:
        if name.startswith("g0001-000002") and new.fence.generation == 0:
            found = new.open(True)
            assert found is not None
            assert found.manifest == first
        write(store, name, data)

    monkeypatch.setattr(Store, "write", late)
    with pytest.raises(SupersededError):
        save(old, 2, names=["mine"], metrics={})
    assert len(models.list("g0001-000002")) == 3  # it did commit
    for name in (True, "mine", "latest", first.name):
        assert peek(models, name).manifest == first
    assert [manifest.name for manifest in new.list()] == [first.name]
    third = save(new, 3, metrics={})
    assert peek(models).manifest == third
    assert third.aliases["mine"] == first.name
