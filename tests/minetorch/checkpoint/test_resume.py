"""Every way to say what to resume from, and everything that can be wrong with what is there."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minetorch.checkpoint import Checkpointer, Manifest, Store
from minetorch.checkpoint.digest import digest_of
from minetorch.checkpoint.manifest import FORMAT, _seal
from minetorch.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigurationError,
    StorageError,
)

Make = Callable[..., Checkpointer]
Save = Callable[..., Manifest]


@pytest.fixture
def run(models: Store, checkpointer: Make, save: Save) -> list[Manifest]:
    """Epochs 1 to 3, of which 2 is best and has a name, and half of epoch 4."""
    run = checkpointer(models)
    return [
        save(run, 1, metrics={"val_loss": 0.3}),
        save(run, 2, metrics={"val_loss": 0.1}, names=["mine"]),
        save(run, 3, metrics={"val_loss": 0.2}),
        save(run, 4, metrics={}, epoch_complete=False, position=7),
    ]


def opened(make: Make, store: Store, resume: Any) -> int:
    checkpoint = make(store).open(resume)
    assert checkpoint is not None
    assert checkpoint.manifest is not None
    assert checkpoint.path.endswith(checkpoint.manifest.payload)
    return int(checkpoint.state["model"][0])


def resealed(data: bytes, **changes: Any) -> bytes:
    content = json.loads(data)
    del content["seal"]
    content.update(changes)
    return json.dumps({**content, "seal": _seal(content)}).encode()


def payload(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("resume", "value"),
    [
        (True, 4),
        ("latest", 4),
        ("latest.pth.tar", 4),
        ("best", 2),
        ("best.pth.tar", 2),
        ("mine", 2),
        ("mine.pth.tar", 2),
        (1, 1),
        ("1", 1),
        ("epoch_3", 3),
        ("epoch_3.pth.tar", 3),
    ],
)
@pytest.mark.usefixtures("run")
def test_by_name_and_by_whole_path(models: Store, checkpointer: Make, resume: Any, value: int) -> None:
    assert opened(checkpointer, models, resume) == value
    if isinstance(resume, str) and resume.endswith(".pth.tar"):
        assert opened(checkpointer, models, models.url_of(resume)) == value
        assert opened(checkpointer, Store.open("memory://elsewhere"), models.url_of(resume)) == value


def test_by_the_files_own_name(models: Store, checkpointer: Make, run: list[Manifest]) -> None:
    assert opened(checkpointer, models, run[0].name) == 1
    assert opened(checkpointer, models, run[0].payload) == 1
    assert opened(checkpointer, models, models.url_of(run[0].payload)) == 1


def test_a_local_path_in_other_spellings(
    local_url: str, checkpointer: Make, save: Save, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    models = Store.open(local_url).child("models")
    save(checkpointer(models), 2)
    folder = models.local_path()
    assert opened(checkpointer, models, folder / "best.pth.tar") == 2
    assert opened(checkpointer, models, f"file://{folder}/best.pth.tar") == 2
    monkeypatch.chdir(folder.parent)
    assert opened(checkpointer, models, "models/best.pth.tar") == 2
    monkeypatch.setenv("HOME", str(folder))
    assert opened(checkpointer, models, "~/best.pth.tar") == 2
    (tmp_path / "link").symlink_to(folder / "best.pth.tar")
    assert opened(checkpointer, models, tmp_path / "link") == 2


def test_its_own_folder_by_another_path_is_still_its_own(
    local_url: str, checkpointer: Make, save: Save, tmp_path: Path
) -> None:
    models = Store.open(local_url).child("models")
    saved = save(checkpointer(models), 1, metrics={"val_loss": 0.5, "other": float("nan")})
    (tmp_path / "link").symlink_to(models.local_path())
    run = checkpointer(models, keep_last=1)
    run.open(tmp_path / "link" / "best.pth.tar")
    assert run.best == (saved.name, 0.5)
    for number in (2, 3):
        save(run, number, metrics={"val_loss": 0.1})
    assert opened(checkpointer, models, saved.name) == 1


def test_false_is_from_scratch(models: Store, checkpointer: Make, run: list[Manifest]) -> None:
    assert checkpointer(models).open(False) is None


def test_nothing_there_is_from_scratch(models: Store, checkpointer: Make, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpointer(models).open(True) is None
    assert caplog.text == ""


def test_one_is_an_epoch_and_not_true(models: Store, checkpointer: Make, run: list[Manifest]) -> None:
    assert opened(checkpointer, models, 1) == 1
    with pytest.raises(CheckpointNotFoundError):
        checkpointer(models).open(0)


@pytest.mark.parametrize("resume", [4, "epoch_4", 99, "bset", "x.pth.tar", "g0001-000001-s000000001-ffffff"])
@pytest.mark.usefixtures("run")
def test_what_is_not_there_is_an_error_that_lists_what_is(models: Store, checkpointer: Make, resume: Any) -> None:
    with pytest.raises(CheckpointNotFoundError, match="there is no checkpoint") as caught:
        checkpointer(models).open(resume)
    assert "names best, latest, mine; epochs 3, 2, 1; files g0001-000004" in str(caught.value)
    assert models.url in str(caught.value)


def test_what_is_not_there_when_nothing_is(models: Store, checkpointer: Make) -> None:
    for resume in ("best", 3, models.url_of("best.pth.tar"), "/no where/best.pth.tar"):
        with pytest.raises(CheckpointNotFoundError, match="it holds none at all"):
            checkpointer(models).open(resume)


def test_a_long_list_is_cut(models: Store, checkpointer: Make, save: Save) -> None:
    run = checkpointer(models)
    for number in range(1, 16):
        save(run, number)
    with pytest.raises(CheckpointNotFoundError, match=r"epochs 15, 14,.* 4 and 3 more; files"):
        checkpointer(models).open(99)


def test_the_newest_of_several_ends_of_an_epoch(models: Store, checkpointer: Make, save: Save) -> None:
    save(checkpointer(models), 3)
    save(checkpointer(models), 5, epoch=3)
    assert opened(checkpointer, models, 3) == 5


def test_a_restart_supersedes_though_its_steps_are_fewer(models: Store, checkpointer: Make, save: Save) -> None:
    save(checkpointer(models), 9)
    save(checkpointer(models), 1)
    assert opened(checkpointer, models, True) == 1


def test_another_runs_checkpoint_brings_its_state_but_not_its_best(
    models: Store, checkpointer: Make, save: Save, run: list[Manifest]
) -> None:
    other = checkpointer(models.child("other"), keep_last=1)
    checkpoint = other.open(models.url_of(run[1].payload))
    assert checkpoint is not None
    assert checkpoint.manifest == run[1]
    assert other.best is None
    assert save(other, 1).generation == 1
    assert checkpointer(models).list() == run


# Damage


def damage_payload(models: Store, manifest: Manifest, change: Callable[[bytes], bytes]) -> None:
    models.write(manifest.payload, change(models.read(manifest.payload)))


def damage_manifest(models: Store, manifest: Manifest, change: Callable[[bytes], bytes]) -> None:
    models.write(manifest.key.manifest, change(models.read(manifest.key.manifest)))


def flip(data: bytes) -> bytes:
    return data[:500] + bytes([data[500] ^ 4]) + data[501:]


DAMAGES: dict[str, tuple[Callable[..., None], str]] = {
    "truncated payload": (lambda s, m: damage_payload(s, m, lambda d: d[:100]), "truncated: it has 100 of its"),
    "flipped payload": (lambda s, m: damage_payload(s, m, flip), "changed after it was saved"),
    "longer payload": (lambda s, m: damage_payload(s, m, lambda d: d + b"x"), "not the file that was saved"),
    "lost payload": (lambda s, m: s.delete(m.payload), "is missing, though its manifest"),
    "truncated manifest": (lambda s, m: damage_manifest(s, m, lambda d: d[:50]), "not a manifest"),
    "empty manifest": (lambda s, m: damage_manifest(s, m, lambda d: b""), "not a manifest"),
    "edited manifest": (
        lambda s, m: damage_manifest(s, m, lambda d: d.replace(b'"epoch": 4', b'"epoch": 5')),
        "its seal does not match",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_the_newest_good_one_is_taken_and_it_is_said_loudly(
    models: Store,
    checkpointer: Make,
    save: Save,
    run: list[Manifest],
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage, words = DAMAGES[kind]
    damage(models, run[3])
    assert opened(checkpointer, models, True) == 3
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "the next older one is tried" in record.message
    assert words in record.message
    assert models.url_of(run[3].name) in record.message
    # And the next save is newer than the damaged one.
    again = checkpointer(models)
    again.open(True)
    save(again, 5)
    assert opened(checkpointer, models, True) == 5


@pytest.mark.parametrize("kind", DAMAGES)
def test_asked_for_by_name_a_damaged_one_is_an_error(
    models: Store, checkpointer: Make, run: list[Manifest], kind: str
) -> None:
    damage, words = DAMAGES[kind]
    damage(models, run[3])
    with pytest.raises(CheckpointCorruptError, match=words):
        checkpointer(models).open(run[3].payload)


def test_two_swapped_payloads(models: Store, checkpointer: Make, run: list[Manifest]) -> None:
    first, second = models.read(run[0].payload), models.read(run[2].payload)
    models.write(run[0].payload, second)
    models.write(run[2].payload, first)
    for epoch in (1, 3):
        with pytest.raises(CheckpointCorruptError, match="changed after it was saved"):
            checkpointer(models).open(epoch)


def test_two_swapped_manifests(models: Store, checkpointer: Make, run: list[Manifest]) -> None:
    models.write(run[3].key.manifest, models.read(run[0].key.manifest))
    with pytest.raises(CheckpointCorruptError, match=f"is the manifest of another checkpoint, {run[0].name}"):
        checkpointer(models).open(run[3].name)
    assert opened(checkpointer, models, True) == 3


def test_when_all_are_damaged_it_is_an_error_and_never_from_scratch(
    models: Store, checkpointer: Make, run: list[Manifest]
) -> None:
    for manifest, (damage, _) in zip(run, DAMAGES.values(), strict=False):
        damage(models, manifest)
    with pytest.raises(CheckpointCorruptError, match=r"(?s)every checkpoint in .* is damaged.*resume=False") as error:
        checkpointer(models).open(True)
    assert all(manifest.name in str(error.value) for manifest in run)
    assert checkpointer(models).open(False) is None


def test_of_a_newer_format_is_an_error_and_not_damage(models: Store, checkpointer: Make, run: list[Manifest]) -> None:
    damage_manifest(models, run[3], lambda data: resealed(data, format=FORMAT + 1))
    for resume in (True, run[3].name):
        with pytest.raises(CheckpointMismatchError, match=rf"format {FORMAT + 1}.*upgrade Minetorch"):
            checkpointer(models).open(resume)
    assert opened(checkpointer, models, 3) == 3


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("exit 1",)


@pytest.mark.parametrize("resume", [True, "latest"])
def test_code_behind_a_good_manifest_is_refused(
    models: Store, checkpointer: Make, run: list[Manifest], resume: Any
) -> None:
    data = payload({"model": Evil()})
    models.write(run[3].payload, data)
    damage_manifest(models, run[3], lambda old: resealed(old, size=len(data), digest=digest_of(data)))
    with pytest.raises(CheckpointMismatchError, match=r"refused because it contains code \(posix\.system\)"):
        checkpointer(models).open(resume)


def test_a_path_in_a_manifest_is_never_followed(models: Store, checkpointer: Make, run: list[Manifest]) -> None:
    damage_manifest(models, run[3], lambda data: resealed(data, payload="../../secret"))
    with pytest.raises(CheckpointCorruptError, match="its payload must be"):
        checkpointer(models).open(run[3].name)


# Files without a manifest


def test_a_file_without_a_manifest_loads_by_its_name_with_a_word(
    models: Store, checkpointer: Make, caplog: pytest.LogCaptureFixture
) -> None:
    models.write("old.pth.tar", payload({"model": torch.ones(1), "epoch": 3}))
    run = checkpointer(models, expected_keys=["model"])
    for resume in ("old.pth.tar", models.url_of("old.pth.tar")):
        caplog.clear()
        checkpoint = run.open(resume)
        assert checkpoint is not None
        assert checkpoint.manifest is None
        assert checkpoint.state["epoch"] == 3
        assert run.best is None
        assert "old.pth.tar has no manifest: it can be read, but not verified" in caplog.text


def test_a_file_that_is_something_else(models: Store, checkpointer: Make) -> None:
    run = checkpointer(models, expected_keys=["model", "optimizer"])
    models.write("weights.pth.tar", payload({"conv.weight": torch.ones(1)}))
    with pytest.raises(CheckpointMismatchError, match=r"lacks model, optimizer; it has conv\.weight"):
        run.open("weights.pth.tar")
    models.write("code.pth.tar", pickle.dumps({"model": Evil()}, protocol=2))
    with pytest.raises(CheckpointMismatchError, match="contains code"):
        run.open("code.pth.tar")
    models.write("text.pth.tar", b"hello")
    with pytest.raises(CheckpointCorruptError, match=r"text\.pth\.tar cannot be read as a checkpoint"):
        run.open("text.pth.tar")


def test_unfinished_files_are_not_resumed_but_told(
    models: Store, checkpointer: Make, caplog: pytest.LogCaptureFixture
) -> None:
    models.write("g0001-000001-s000000001-abcdef.pth.tar", b"half of a check")
    models.write("latest.pth.tar", b"of the original Minetorch")
    assert checkpointer(models).open(True) is None
    assert "no checkpoint that was finished" in caplog.text
    assert "latest.pth.tar" in caplog.text


# Storage


@pytest.mark.parametrize("resume", [True, False, "best", 3])
def test_a_storage_that_cannot_be_listed_is_never_from_scratch(
    models: Store, checkpointer: Make, monkeypatch: pytest.MonkeyPatch, resume: Any
) -> None:
    def refuse(self: object, path: str) -> list[str]:
        raise PermissionError("not yours")

    monkeypatch.setattr(type(models._files), "list", refuse)
    with pytest.raises(StorageError, match=r"cannot list .*not yours"):
        checkpointer(models).open(resume)


def test_a_payload_that_cannot_be_fetched_is_not_damaged(
    models: Store, checkpointer: Make, run: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Falling back because of a passing outage would throw work away."""

    def refuse(self: Any, path: str, *where: Any) -> bytes:
        raise TimeoutError("try later")

    monkeypatch.setattr(type(models._files), "read_range", refuse)
    monkeypatch.setattr(type(models._files), "read_large", refuse)
    with pytest.raises(StorageError, match=r"cannot read .*try later"):
        checkpointer(models).open(True)


@pytest.mark.parametrize("resume", ["", None, 2.5, "..", "memory://"])
def test_what_cannot_be_asked_for(models: Store, checkpointer: Make, resume: Any) -> None:
    with pytest.raises((ConfigurationError, CheckpointNotFoundError)):
        checkpointer(models).open(resume)
