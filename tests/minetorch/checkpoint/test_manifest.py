from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from minetorch.checkpoint.manifest import FORMAT, Manifest, _seal
from minetorch.errors import CheckpointCorruptError, CheckpointMismatchError

Make = Callable[..., Manifest]


def changed(manifest: Manifest, **changes: Any) -> bytes:
    """A manifest with other fields and a seal that matches; None takes a field away."""
    content = json.loads(manifest.to_json())
    del content["seal"]
    content.update(changes)
    content = {key: value for key, value in content.items() if value is not None}
    return json.dumps({**content, "seal": _seal(content)}).encode()


def test_survives_json(manifest: Make) -> None:
    name = "g0001-000001-s000000010-abcdef"
    original = manifest(
        metrics={"a": 0.1, "b": math.inf, "c": -math.inf, "ünï": 1e-300},
        aliases={"latest": name, "best": name, "before_surgery": name},
        host="häst",
        versions={"torch": "2.13.0+cpu"},
    )
    assert Manifest.from_json(original.to_json()) == original


def test_nan_survives_as_strict_json(manifest: Make) -> None:
    data = manifest(metrics={"val_loss": math.nan}).to_json()
    json.loads(data, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert math.isnan(Manifest.from_json(data).metrics["val_loss"])


def test_sorts_by_generation_then_sequence(manifest: Make) -> None:
    old, new, restarted = manifest(1, 9, 900), manifest(1, 10, 900), manifest(2, 1, 5)
    assert max([restarted, old, new], key=lambda each: each.key) is restarted
    assert old.key < new.key


def test_a_later_minor_field_is_ignored(manifest: Make) -> None:
    assert Manifest.from_json(changed(manifest(), fingerprint="x")) == manifest()


def test_tells_by_what_a_checkpoint_is_best(manifest: Make) -> None:
    original = manifest(monitor="accuracy", mode="max")
    read = Manifest.from_json(original.to_json())
    assert (read.monitor, read.mode) == ("accuracy", "max")


def test_one_of_before_the_monitor_was_kept_is_read(manifest: Make) -> None:
    read = Manifest.from_json(changed(manifest(monitor="accuracy", mode="max"), monitor=None, mode=None))
    assert (read.monitor, read.mode) == ("", "")


@pytest.mark.parametrize("change", [{"monitor": 3}, {"mode": "lowest"}])
def test_a_monitor_that_is_none_is_refused(manifest: Make, change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointCorruptError, match="its monitor is"):
        Manifest.from_json(changed(manifest(), **change))


def test_a_newer_format_says_upgrade(manifest: Make) -> None:
    with pytest.raises(CheckpointMismatchError, match=rf"here\.json has format {FORMAT + 1}.*upgrade Minetorch"):
        Manifest.from_json(changed(manifest(), format=FORMAT + 1), "here.json")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b"3", b"null", b"{}", b"[" * 100_000])
def test_garbage_is_not_a_manifest(data: bytes) -> None:
    with pytest.raises(CheckpointCorruptError, match=r"here\.json is not a manifest"):
        Manifest.from_json(data, "here.json")


def test_any_flipped_bit_is_noticed(manifest: Make) -> None:
    original = manifest(metrics={"val_loss": 0.5})
    data = original.to_json()
    for at in range(len(data)):
        flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        try:
            read = Manifest.from_json(flipped)
        except (CheckpointCorruptError, CheckpointMismatchError):
            continue
        assert read == original, f"byte {at}"


@pytest.mark.parametrize("length", [0, 1, 100, -1, -2, -3])
def test_truncation_is_noticed(manifest: Make, length: int) -> None:
    data = manifest().to_json().rstrip()
    with pytest.raises(CheckpointCorruptError):
        Manifest.from_json(data[:length])


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../../etc/passwd"},
        {"name": 3},
        {"payload": "/etc/passwd"},
        {"payload": "../g0001-000001-s000000010-abcdef.pth.tar"},
        {"payload": "g0001-000001-s000000010-ffffff.pth.tar"},
        {"generation": 2},
        {"step": "10"},
        {"sequence": True},
        {"epoch": -1},
        {"epoch": 1.5},
        {"epoch_complete": 1},
        {"world_size": 0},
        {"size": -1},
        {"digest": "crc32:xyz"},
        {"digest": 5},
        {"metrics": [1]},
        {"metrics": {"a": "many"}},
        {"metrics": {"a": True}},
        {"metrics": {"a": []}},
        {"aliases": {"../x": "g0001-000001-s000000010-abcdef"}},
        {"aliases": {"best": "../x"}},
        {"aliases": 3},
        {"versions": {"torch": 2}},
        {"created": "today"},
        {"host": 3},
        {"format": True},
        {"format": 0},
        {"position": None},
        {"metrics": None},
    ],
    ids=str,
)
def test_fields_are_checked(manifest: Make, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointCorruptError, match="is not a manifest: it"):
        Manifest.from_json(changed(manifest(), **changes))
