"""The manifest: a file that was written once stays readable, and a file that is none says why."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from minetorch.checkpoint.manifest import FORMAT, Manifest, _seal
from minetorch.errors import CheckpointCorruptError, CheckpointMismatchError

Make = Callable[..., Manifest]

NAME, BEST = "g0002-000003-s000000040-0123ab", "g0001-000001-s000000010-abcdef"
OWN = "g0001-000001-s000000010-abcdef"
CURVES = {"name": f"{OWN}.curves", "size": 8, "digest": "crc32:0f0f0f0f"}

# Never change this text: runs of users hold it.
TEXT = """\
{
  "name": "g0002-000003-s000000040-0123ab",
  "generation": 2,
  "sequence": 3,
  "step": 40,
  "epoch": 0,
  "epoch_complete": false,
  "position": 0,
  "world_size": 1,
  "payload": "g0002-000003-s000000040-0123ab.pth.tar",
  "size": 0,
  "digest": "crc32:0f0f0f0f",
  "metrics": {
    "val_loss": "nan",
    "best": "-inf",
    "acc": 0.5,
    "n": 3
  },
  "aliases": {
    "latest": "g0002-000003-s000000040-0123ab",
    "best": "g0001-000001-s000000010-abcdef",
    "mine": "g0001-000001-s000000010-abcdef"
  },
  "created": 1700000000.25,
  "host": "häst",
  "versions": {
    "torch": "2.9.0"
  },
  "code": {
    "script": "train.py"
  },
  "dropped": [
    "g0001-000002-s000000020-00ff00"
  ],
  "monitor": "acc",
  "mode": "max",
  "settings": {
    "lr": 0.1,
    "amp": false,
    "seed": 0,
    "code": null,
    "opt": "SGD"
  },
  "format": 1,
  "seal": "sha256:12e5a438ec65ae3b3ce6ade9ec3c4eab887bdff8127ead9d4bf5f76b40feed45"
}
"""


def changed(manifest: Manifest, **changes: Any) -> bytes:
    """A manifest with other fields and a seal that matches; None takes a field away."""
    content = json.loads(manifest.to_json())
    del content["seal"]
    content.update(changes)
    content = {key: value for key, value in content.items() if value is not None}
    return json.dumps({**content, "seal": _seal(content)}).encode()


def test_the_file_of_format_1() -> None:
    manifest = Manifest.from_json(TEXT.encode())
    assert {**vars(manifest), "metrics": repr(manifest.metrics)} == {
        "name": NAME,
        "generation": 2,
        "sequence": 3,
        "step": 40,
        "epoch": 0,
        "epoch_complete": False,
        "position": 0,
        "world_size": 1,
        "payload": f"{NAME}.pth.tar",
        "size": 0,
        "digest": "crc32:0f0f0f0f",
        "metrics": "{'val_loss': nan, 'best': -inf, 'acc': 0.5, 'n': 3.0}",
        "aliases": {"latest": NAME, "best": BEST, "mine": BEST},
        "created": 1700000000.25,
        "host": "häst",
        "versions": {"torch": "2.9.0"},
        "code": {"script": "train.py"},
        "dropped": ["g0001-000002-s000000020-00ff00"],
        "monitor": "acc",
        "mode": "max",
        "settings": {"lr": 0.1, "amp": False, "seed": 0, "code": None, "opt": "SGD"},
        "curves": None,
        "format": 1,
    }
    assert str(manifest.key) == NAME


def test_it_is_written_as_it_was_read() -> None:
    content = json.loads(TEXT)
    content["metrics"]["n"] = 3.0
    del content["seal"], content["format"]
    content |= {"curves": {**CURVES, "name": f"{NAME}.curves"}, "format": 2}
    text = json.dumps({**content, "seal": _seal(content)}, indent=2, ensure_ascii=False) + "\n"
    assert Manifest.from_json(text.encode()).to_json().decode() == text


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


def test_what_json_or_utf_8_cannot_hold(manifest: Make) -> None:
    odd = manifest(host="h\udcffst", versions={"torch": "\ud800"})
    assert b"h\\udcffst" in odd.to_json()
    assert Manifest.from_json(odd.to_json()) == odd
    with pytest.raises(ValueError, match="Out of range float"):
        manifest(settings={"lr": math.nan}).to_json()


def test_sorts_by_generation_then_sequence(manifest: Make) -> None:
    old, new, restarted = manifest(1, 9, 900), manifest(1, 10, 900), manifest(2, 1, 5)
    assert max([restarted, old, new], key=lambda each: each.key) is restarted
    assert old.key < new.key


def test_a_later_minor_field_is_ignored(manifest: Make) -> None:
    assert Manifest.from_json(changed(manifest(), fingerprint="x")) == manifest()


def test_fields_that_came_later_may_be_missing(manifest: Make) -> None:
    read = Manifest.from_json(changed(manifest(monitor="accuracy", mode="max"), monitor=None, mode=None, settings=None))
    assert (read.monitor, read.mode, read.settings) == ("", "", {})


def test_a_newer_format_says_upgrade(manifest: Make) -> None:
    with pytest.raises(CheckpointMismatchError, match=rf"here\.json has format {FORMAT + 1}.*upgrade Minetorch"):
        Manifest.from_json(changed(manifest(), format=FORMAT + 1), "here.json")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b"3", b"null", b"{}", b"[" * 100_000])
def test_garbage_is_not_a_manifest(data: bytes) -> None:
    with pytest.raises(CheckpointCorruptError, match=r"here\.json is not a manifest"):
        Manifest.from_json(data, "here.json")


@pytest.mark.parametrize(("old", "new"), [("40,", "41,"), ('"seal"', '"sealed"')])
def test_a_changed_file_is_noticed(old: str, new: str) -> None:
    with pytest.raises(CheckpointCorruptError, match="was changed after it was written: its seal does not match"):
        Manifest.from_json(TEXT.replace(old, new).encode())


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
    ("changes", "words"),
    [
        ({"name": "../../etc/passwd"}, "its name is '../../etc/passwd'"),
        ({"name": 3}, "its name is 3"),
        ({"payload": "/etc/passwd"}, f"its payload must be '{OWN}.pth.tar' beside it, not '/etc/passwd'"),
        ({"curves": 3}, "its curves are 3, not a name, a size and a digest"),
        ({"curves": {**CURVES, "name": "/etc/passwd"}}, f"its curves must be in '{OWN}.curves', not in '/etc/passwd'"),
        ({"curves": {**CURVES, "size": -1}}, "its curves have the size -1 and the digest 'crc32:0f0f0f0f'"),
        ({"curves": {**CURVES, "digest": "crc32"}}, "its curves have the size 8 and the digest 'crc32'"),
        ({"generation": 2}, f"its generation is 2, which its name '{OWN}' contradicts"),
        ({"sequence": True}, f"its sequence is True, which its name '{OWN}' contradicts"),
        ({"step": "10"}, f"its step is '10', which its name '{OWN}' contradicts"),
        ({"epoch": -1}, "its epoch is -1"),
        ({"epoch": 1.5}, "its epoch is 1.5"),
        ({"world_size": 0}, "its world_size is 0"),
        ({"size": -1}, "its size is -1"),
        ({"epoch_complete": 1}, "its epoch_complete is 1"),
        ({"digest": "crc32:0000000G"}, "its digest is 'crc32:0000000G'"),
        ({"digest": 5}, "its digest is 5"),
        ({"created": "today"}, "its time or host is not one"),
        ({"created": -0.5}, "its time or host is not one"),
        ({"created": 10**400}, "int too large to convert to float"),
        ({"host": 3}, "its time or host is not one"),
        ({"monitor": 3, "mode": "min"}, "its monitor is 3, in mode 'min'"),
        ({"monitor": "m", "mode": "mean"}, "its monitor is 'm', in mode 'mean'"),
        ({"dropped": [OWN, "../x"]}, f"its dropped checkpoints are ['{OWN}', '../x']"),
        ({"metrics": [1]}, "its metrics are not a table"),
        ({"metrics": {"a": 1, "b": True}}, "its metric 'b' is True"),
        ({"metrics": {"loss": 10**400}}, "int too large to convert to float"),
        ({"versions": {"torch": 2}}, "its versions are not a table"),
        ({"code": {"script": 1}}, "its code are not a table"),
        ({"settings": {"a": 1, "b": [1]}}, "its settings are not a table of plain values"),
        ({"aliases": 3}, "its aliases are not a table"),
        ({"aliases": {"best": OWN, "../x": OWN}}, "it has an alias '../x'"),
        ({"aliases": {"best": "../x"}}, "its alias 'best' points to '../x'"),
        ({"format": True}, "its format is True, not a number"),
        ({"format": 0}, "its format is 0, not a number"),
        ({"position": None, "metrics": None}, "it lacks position, metrics"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named(manifest: Make, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointCorruptError) as refused:
        Manifest.from_json(changed(manifest(), **changes), "/run/x.json")
    assert str(refused.value) == f"/run/x.json is not a manifest: {words}"
