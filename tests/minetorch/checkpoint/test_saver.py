"""Saving beside training: what is staged when, what waits for what, and where a failure comes up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from minetorch.checkpoint import Checkpointer, Manifest, Store
from minetorch.checkpoint.saver import Saver
from minetorch.errors import ConfigurationError, StorageError, SupersededError

Make = Callable[..., Checkpointer]
Peek = Callable[..., Any]

SIZE = 1 << 20


class Gate:
    """Lets the saving thread come to a commit, and no further until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()
        self.failure: Exception | None = None
        write = Checkpointer._write_manifest

        def gated(checkpointer: Checkpointer, manifest: Manifest) -> None:
            self.reached.set()
            assert self.open.wait(30)
            if self.failure is not None:
                raise self.failure
            write(checkpointer, manifest)

        monkeypatch.setattr(Checkpointer, "_write_manifest", gated)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.open.set()


class Run:
    """A model of one weight, saved as the Trainer does."""

    def __init__(self, checkpointer: Checkpointer) -> None:
        self.weight = torch.zeros(SIZE)
        self.saver = Saver(checkpointer)
        self.step = 0

    def save(self, *names: str) -> str:
        return self.saver.save(
            {"model": self.weight, "step": self.step},
            names=names,
            step=self.step,
            epoch=1,
            epoch_complete=False,
            position=self.step,
            world_size=1,
            metrics={"val_loss": 1 / (1 + self.step)},
        )

    def take_step(self) -> None:
        self.weight += 1
        self.step += 1


@pytest.fixture
def run(models: Store, checkpointer: Make) -> Iterator[Run]:
    made = Run(checkpointer(models))
    yield made
    if made.saver._writer is not None:
        made.saver._writer.shutdown()


def values(peek: Peek, models: Store, name: Any = True) -> tuple[list[float], int]:
    state = peek(models, name).state
    return state["model"].unique().tolist(), state["step"]


def test_it_returns_before_it_is_durable_and_tells_when_it_is(run: Run, gate: Gate, models: Store, peek: Peek) -> None:
    path = run.save("mine")
    assert gate.reached.wait(30)
    assert run.saver.is_busy
    assert run.saver.take_news() == []
    assert peek(models) is None
    gate.open.set()
    run.saver.flush()
    [saved] = run.saver.take_news()
    assert (saved.path, saved.names) == (path, ("mine",))
    assert not run.saver.has_news
    assert values(peek, models, "mine") == ([0.0], 0)


def test_each_checkpoint_is_of_the_moment_it_was_asked_for(run: Run, models: Store, peek: Peek) -> None:
    for _ in range(6):
        run.save(f"at-{run.step}")
        run.take_step()
    run.saver.close()
    assert [values(peek, models, f"at-{step}") for step in range(6)] == [([float(step)], step) for step in range(6)]


def test_a_save_waits_for_the_one_before(run: Run, gate: Gate, models: Store) -> None:
    run.save("first")
    assert gate.reached.wait(30)
    second = threading.Thread(target=run.save, args=("second",))
    second.start()
    second.join(0.1)
    assert second.is_alive()
    gate.open.set()
    second.join(30)
    run.saver.flush()
    assert [saved.names for saved in run.saver.take_news()] == [("first",), ("second",)]


def test_a_failure_comes_up_with_the_storages_words_and_the_next_save_succeeds(
    run: Run, gate: Gate, models: Store, peek: Peek
) -> None:
    gate.open.set()
    run.save("first")
    run.saver.flush()
    gate.failure = StorageError("cannot write x: Slow Down (ClientError)")
    run.save("second")
    assert run.saver._under_way is not None
    run.saver._under_way.exception(timeout=30)
    assert run.saver.has_news
    with pytest.raises(StorageError, match="Slow Down"):
        run.saver.take_news()
    assert [saved.names for saved in run.saver.take_news()] == [("first",)]
    gate.failure = None
    run.save("third")
    run.saver.flush()
    assert values(peek, models, "third")[1] == 0
    assert "second" not in peek(models).manifest.aliases


def test_best_is_known_before_it_is_durable(run: Run, gate: Gate) -> None:
    run.save()
    assert gate.reached.wait(30)
    assert not run.saver._checkpointer.would_be_best({"val_loss": 2.0})
    assert run.saver._checkpointer.would_be_best({"val_loss": 0.5})
    gate.failure = StorageError("no")
    gate.open.set()
    with pytest.raises(StorageError):
        run.saver.flush()
    assert run.saver._checkpointer.would_be_best({"val_loss": 2.0})


def test_what_cannot_be_saved_is_refused_at_once_and_harms_no_later_save(run: Run, models: Store, peek: Peek) -> None:
    with pytest.raises(ConfigurationError, match="cannot be named"):
        run.save("epoch_1")
    weight, run.weight = run.weight, lambda: 0  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match="function"):
        run.save()
    run.weight = weight
    run.save("fine")
    run.saver.close()
    assert values(peek, models, "fine")[1] == 0


def test_a_writer_that_is_replaced_stops_and_its_work_is_void(
    run: Run, gate: Gate, models: Store, checkpointer: Make, peek: Peek
) -> None:
    gate.open.set()
    run.save("mine")
    run.saver.flush()
    gate.open.clear()
    gate.reached.clear()
    run.take_step()
    run.save("mine")
    assert gate.reached.wait(30)
    successor = checkpointer(models)
    found = successor.open(True)
    assert found is not None
    assert found.state["step"] == 0
    gate.open.set()
    with pytest.raises(SupersededError, match=r"taken over by another start of it \(process \d+ on .*number 2.* 1\)"):
        run.saver.flush()
    assert values(peek, models, "mine") == ([0.0], 0)
