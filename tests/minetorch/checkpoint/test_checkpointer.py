"""Saving, naming and dropping. Resuming has a file of its own."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from minetorch.checkpoint import Checkpoint, Checkpointer, Manifest, Store
from minetorch.checkpoint.catalogue import Catalogue
from minetorch.checkpoint.patience import Patience
from minetorch.errors import ConfigurationError, StorageError

Make = Callable[..., Checkpointer]
Save = Callable[..., Manifest]
Values = Callable[[], list[int]]


@pytest.fixture
def values(models: Store, peek: Callable[..., Checkpoint]) -> Callable[[], list[int]]:
    """What the checkpoints in the folder hold, oldest first; every one is verified by being read."""

    def values() -> list[int]:
        names = [manifest.name for manifest in Catalogue.read(models).manifests]
        return [int(peek(models, name).state["model"][0]) for name in names]

    return values


def test_a_manifest_tells_everything(models: Store, checkpointer: Make) -> None:
    run = checkpointer(models)
    assert run.open(True) is None
    manifest = run.save(
        {"model": torch.ones(1)},
        step=120,
        epoch=3,
        epoch_complete=False,
        position=40,
        world_size=4,
        metrics={"val_loss": 0.5, "accuracy": torch.tensor(0.75), "count": np.int64(3)},  # type: ignore[dict-item]
        names=["before_surgery"],
    )
    assert (manifest.generation, manifest.sequence, manifest.step) == (1, 1, 120)
    assert (manifest.epoch, manifest.epoch_complete, manifest.position) == (3, False, 40)
    assert (manifest.world_size, manifest.created) == (4, 1000.0)
    assert manifest.metrics == {"val_loss": 0.5, "accuracy": 0.75, "count": 3.0}
    assert manifest.aliases == dict.fromkeys(("latest", "best", "before_surgery"), manifest.name)
    assert manifest.size == models.size(manifest.payload)
    assert manifest.versions.keys() == {"minetorch", "torch", "python", *(["cuda"] if torch.version.cuda else [])}
    assert manifest.host
    assert run.path_of(manifest) == f"{models.url}/{manifest.name}.pth.tar"
    assert run.list() == [manifest]


def test_a_payload_is_what_torch_opens(models: Store, checkpointer: Make, save: Save) -> None:
    manifest = save(checkpointer(models), 1)
    with models.open_read(manifest.payload) as file:
        assert torch.load(file, weights_only=True)["model"][0] == 1


def test_every_start_is_a_generation(models: Store, checkpointer: Make, save: Save) -> None:
    for generation, resume in enumerate([True, True, False, 1, True], 1):
        run = checkpointer(models)
        run.open(resume)
        assert [save(run, 1).key.generation, save(run, 2).sequence] == [generation, 2]


def test_saving_without_opening_starts_a_generation_too(models: Store, checkpointer: Make, save: Save) -> None:
    save(checkpointer(models), 1)
    assert save(checkpointer(models), 2).generation == 2


def test_a_damaged_checkpoints_generation_is_not_taken_again(models: Store, checkpointer: Make, save: Save) -> None:
    models.write("g0007-000001-s000000001-abcdef.pth.tar", b"uncommitted")
    assert save(checkpointer(models), 1).generation == 8


@pytest.mark.parametrize(
    ("mode", "losses", "best"),
    [
        ("min", [3.0, 1.0, 2.0], 2),
        ("max", [3.0, 1.0, 2.0], 1),
        ("min", [1.0, 1.0, 1.0], 1),
        ("min", [math.nan, 2.0, math.nan], 2),
        ("min", [0.0, None, -0.0], 1),
        ("min", [math.inf, 5.0, None], 2),
        ("max", [-math.inf, None, math.nan], 1),
    ],
)
def test_best(models: Store, checkpointer: Make, save: Save, mode: str, losses: list[float | None], best: int) -> None:
    run = checkpointer(models, monitor="loss", mode=mode)
    saved = []
    for number, loss in enumerate(losses, 1):
        metrics = {} if loss is None else {"loss": loss}
        expected = run.would_be_best(metrics)
        saved.append(save(run, number, metrics=metrics))
        assert (saved[-1].aliases.get("best") == saved[-1].name) == expected
    assert run.best == (saved[best - 1].name, losses[best - 1])
    again = checkpointer(models, monitor="loss", mode=mode).open("best")
    assert again is not None
    assert again.manifest == saved[best - 1]


def test_without_the_metric_none_is_best(models: Store, checkpointer: Make, save: Save) -> None:
    run = checkpointer(models)
    assert "best" not in save(run, 1, metrics={"train_loss": 0.0}).aliases
    assert "best" not in save(run, 2, metrics={"val_loss": math.nan}).aliases
    assert run.best is None


@pytest.mark.parametrize(
    ("resume", "best"), [(True, 1), ("best", 1), (2, 1), (3, 1), (False, None)], ids=["True", "best", "2", "3", "False"]
)
def test_best_goes_on_where_the_run_does(
    models: Store, checkpointer: Make, save: Save, resume: Any, best: int | None
) -> None:
    run = checkpointer(models)
    saved = [save(run, number, metrics={"val_loss": loss}) for number, loss in enumerate([0.2, 0.5, 0.4], 1)]
    again = checkpointer(models)
    again.open(resume)
    assert again.best == (None if best is None else (saved[0].name, 0.2))
    assert (save(again, 4, metrics={"val_loss": 0.3}).aliases["best"] == saved[0].name) == (best is not None)


def test_best_of_before_the_point_of_resumption(models: Store, checkpointer: Make, save: Save) -> None:
    """Epoch 3 was better, but the run went back to epoch 2, and has to find its own way down."""
    run = checkpointer(models)
    for number, loss in enumerate([0.5, 0.4, 0.1], 1):
        save(run, number, metrics={"val_loss": loss})
    again = checkpointer(models)
    again.open(2)
    assert again.best is not None
    assert again.best[1] == 0.4
    assert again.would_be_best({"val_loss": 0.3})


def test_another_monitor_starts_from_the_figure_that_the_best_had_in_it(
    models: Store, checkpointer: Make, save: Save
) -> None:
    save(checkpointer(models), 1, metrics={"val_loss": 0.5, "accuracy": 0.9})
    run = checkpointer(models, monitor="accuracy", mode="max")
    run.open(True)
    assert run.best is not None
    assert run.best[1] == 0.9
    other = checkpointer(models, monitor="f1", mode="max")
    other.open(True)
    assert other.best is None


def test_a_users_name_stays_until_it_is_given_again(models: Store, checkpointer: Make, save: Save) -> None:
    run = checkpointer(models, keep_last=1)
    first = save(run, 1, names=["mine", "other"], metrics={})
    save(run, 2, metrics={})
    for resume in (False, True):  # even a start from scratch keeps what the user asked to keep
        run = checkpointer(models, keep_last=1)
        run.open(resume)
        assert save(run, 3, metrics={}).aliases["mine"] == first.name
    moved = save(run, 4, names=["mine"], metrics={})
    newest = save(run, 5, metrics={})
    assert (newest.aliases["mine"], newest.aliases["other"]) == (moved.name, first.name)


def test_a_name_whose_checkpoint_was_deleted_by_hand_is_forgotten(
    models: Store, checkpointer: Make, save: Save
) -> None:
    first = save(checkpointer(models), 1, names=["mine"])
    run = checkpointer(models)
    run.open(True)
    save(run, 2, metrics={})
    models.delete(first.key.manifest)
    models.delete(first.payload)
    run = checkpointer(models)
    run.open(True)
    assert run.best is None
    assert save(run, 3, metrics={}).aliases.keys() == {"latest"}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"keep_last": 2}, [2, 4, 5]),  # 2 is the best
        ({"keep_best": 2}, [1, 2, 5]),
        ({"keep_last": 2, "keep_best": 2}, [1, 2, 4, 5]),
    ],
    ids=str,
)
def test_retention(
    models: Store, checkpointer: Make, save: Save, options: dict[str, int], kept: list[int], values: Values
) -> None:
    run = checkpointer(models, **options)
    for number, loss in enumerate([0.2, 0.1, 0.3, 0.4, 0.5], 1):
        save(run, number, metrics={"val_loss": loss})
    assert values() == kept
    files = [entry for entry in models.entries() if not entry.is_link and not entry.is_folder]
    assert len(files) == 3 * len(kept)


def test_what_the_run_resumed_from_stays(models: Store, checkpointer: Make, save: Save, values: Values) -> None:
    run = checkpointer(models)
    for number in range(1, 5):
        save(run, number, metrics={})
    run = checkpointer(models, keep_last=1)
    run.open("epoch_2")
    for number in (5, 6):
        save(run, number, metrics={})
    assert values() == [2, 6]


def test_foreign_files_are_left_alone(models: Store, checkpointer: Make, save: Save, values: Values) -> None:
    foreign = ["notes.txt", "old.pth.tar", "x.json", "g0001-000001-s000000001-ffffff.pth.tar", "folder/y"]
    for name in foreign:
        models.write(name, b"theirs")
    run = checkpointer(models, keep_last=1)
    run.open(True)
    save(run, 1)
    save(run, 2)
    for name in foreign:
        assert models.read(name) == b"theirs"
    assert values() == [2]


def test_a_deletion_that_fails_is_told_and_tried_again(
    models: Store,
    checkpointer: Make,
    save: Save,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    values: Values,
) -> None:
    run = checkpointer(models, keep_last=1)
    save(run, 1, metrics={})
    with monkeypatch.context() as patch:

        def refuse(self: Store, name: str) -> None:
            raise StorageError("not today")

        patch.setattr(Store, "delete", refuse)
        save(run, 2, metrics={})
    assert "An expired checkpoint stays for now: not today" in caplog.text
    assert len([name for name in models.list("g") if not models.is_link(name)]) == 6
    assert values() == [2]  # it has expired all the same
    save(run, 3, metrics={})
    assert len([name for name in models.list("g") if not models.is_link(name)]) == 3
    assert values() == [3]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": ["fine", "epoch_3"]}, "cannot be named 'epoch_3'"),
        ({"metrics": {"val_loss": None}}, "the metric 'val_loss' is None"),
        ({"metrics": {"val_loss": torch.ones(2)}}, "the metric 'val_loss' is tensor"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_written(
    models: Store, checkpointer: Make, save: Save, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        save(checkpointer(models), 1, **changes)
    assert models.list() == []


def test_a_state_that_cannot_be_read_back_is_found_before_anything_is_written(
    models: Store, checkpointer: Make
) -> None:
    with pytest.raises(ConfigurationError, match=r"statable\.sched\.fn: function"):
        checkpointer(models).save(
            {"statable": {"sched": {"fn": lambda: 0}}},
            step=1,
            epoch=1,
            epoch_complete=True,
            position=0,
            world_size=1,
            metrics={},
        )
    assert models.list() == []


@pytest.mark.parametrize(
    "options", [{"keep_last": 0}, {"keep_best": -1}, {"keep_last": True}, {"keep_last": 1.5}, {"mode": "lowest"}]
)
def test_options_are_checked(models: Store, checkpointer: Make, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(options))}="):
        checkpointer(models, **options)


@pytest.mark.parametrize("call", ["list", "create", "read", "write"])
def test_a_start_tries_again_what_the_storage_refuses(
    call: str, models: Store, checkpointer: Make, save: Save, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    save(checkpointer(models), 1)
    real, refused = getattr(Store, call), []

    def refuse(store: Store, *arguments: Any) -> Any:
        if len(refused) < 3:
            refused.append(call)
            raise StorageError(f"cannot {call}: 503 Slow Down")
        return real(store, *arguments)

    monkeypatch.setattr(Store, call, refuse)
    run = checkpointer(models, patience=Patience(logging.getLogger("tests"), delays_s=[0.0] * 3))
    run.check("latest")
    assert run.claim("replace")
    assert run.open("latest") is not None
    assert len(refused) == 3
    assert caplog.text.count("Trying again") == 3
