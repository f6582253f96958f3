"""The manifest's format: a file that was written once is read for ever, and every field that is wrong is named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from minetorch.checkpoint.manifest import Manifest, _seal
from minetorch.errors import CheckpointCorruptError, CheckpointMismatchError

Make = Callable[..., Manifest]

NAME, BEST = "g0002-000003-s000000040-0123ab", "g0001-000001-s000000010-abcdef"

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
        "format": 1,
    }
    assert str(manifest.key) == NAME


def test_it_is_written_as_it_was_read() -> None:
    text = TEXT.replace('"n": 3', '"n": 3.0')
    content = json.loads(text)
    seal = content.pop("seal")
    text = text.replace(seal, _seal(content))
    assert Manifest.from_json(text.encode()).to_json().decode() == text


def refusal(data: bytes, kind: type[Exception] = CheckpointCorruptError) -> str:
    with pytest.raises(kind) as refused:
        Manifest.from_json(data, "/run/x.json")
    return str(refused.value)


def changed(manifest: Manifest, changes: dict[str, Any]) -> bytes:
    content = json.loads(manifest.to_json())
    del content["seal"]
    content |= changes
    return json.dumps({**content, "seal": _seal(content)}).encode()


OWN = "g0001-000001-s000000010-abcdef"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "x"}, "its name is 'x'"),
        ({"name": 3}, "its name is 3"),
        ({"payload": "x"}, f"its payload must be '{OWN}.pth.tar' beside it, not 'x'"),
        ({"generation": 2}, f"its generation is 2, which its name '{OWN}' contradicts"),
        ({"sequence": 2}, f"its sequence is 2, which its name '{OWN}' contradicts"),
        ({"step": 10.0}, f"its step is 10.0, which its name '{OWN}' contradicts"),
        ({"generation": True}, f"its generation is True, which its name '{OWN}' contradicts"),
        ({"epoch": -1}, "its epoch is -1"),
        ({"position": -1}, "its position is -1"),
        ({"world_size": 0}, "its world_size is 0"),
        ({"world_size": True}, "its world_size is True"),
        ({"size": -1}, "its size is -1"),
        ({"size": "5"}, "its size is '5'"),
        ({"epoch_complete": 0}, "its epoch_complete is 0"),
        ({"digest": "crc32:0000000G"}, "its digest is 'crc32:0000000G'"),
        ({"digest": "crc32:000000000"}, "its digest is 'crc32:000000000'"),
        ({"digest": 7}, "its digest is 7"),
        ({"created": True}, "its time or host is not one"),
        ({"host": None}, "its time or host is not one"),
        ({"monitor": 3, "mode": "min"}, "its monitor is 3, in mode 'min'"),
        ({"monitor": "m", "mode": "mean"}, "its monitor is 'm', in mode 'mean'"),
        ({"dropped": {}}, "its dropped checkpoints are {}"),
        ({"dropped": [3]}, "its dropped checkpoints are [3]"),
        ({"dropped": [OWN, "../x"]}, f"its dropped checkpoints are ['{OWN}', '../x']"),
        ({"metrics": 3}, "its metrics are not a table"),
        ({"metrics": {"a": "infinity"}}, "its metric 'a' is 'infinity'"),
        ({"metrics": {"a": 1, "b": False}}, "its metric 'b' is False"),
        ({"versions": {"torch": None}}, "its versions are not a table"),
        ({"versions": []}, "its versions are not a table"),
        ({"code": {"script": 1}}, "its code are not a table"),
        ({"settings": []}, "its settings are not a table of plain values"),
        ({"settings": {"a": 1, "b": [1]}}, "its settings are not a table of plain values"),
        ({"settings": {"a": {}}}, "its settings are not a table of plain values"),
        ({"aliases": []}, "its aliases are not a table"),
        ({"aliases": {"epoch_3": OWN}}, "it has an alias 'epoch_3'"),
        ({"aliases": {"best": OWN, "../x": OWN}}, "it has an alias '../x'"),
        ({"aliases": {"best": "x"}}, "its alias 'best' points to 'x'"),
        ({"aliases": {"mine": 3}}, "its alias 'mine' points to 3"),
        ({"format": "1"}, "its format is '1', not a number"),
        ({"format": 0}, "its format is 0, not a number"),
        ({"format": True}, "its format is True, not a number"),
    ],
    ids=str,
)  # fmt: skip
def test_every_field_that_is_wrong_is_named(manifest: Make, changes: dict[str, Any], words: str) -> None:
    assert refusal(changed(manifest(), changes)) == f"/run/x.json is not a manifest: {words}"


def test_fields_that_are_not_there_are_named(manifest: Make) -> None:
    content = json.loads(manifest().to_json())
    for name in ("seal", "epoch", "dropped", "monitor", "mode", "settings", "format"):
        del content[name]
    content = {**content, "format": 1}
    data = json.dumps({**content, "seal": _seal(content)}).encode()
    assert refusal(data) == "/run/x.json is not a manifest: it lacks epoch, dropped"


def test_the_least_and_the_most_that_is_allowed(manifest: Make) -> None:
    for changes in (
        {"epoch": 0, "position": 0, "world_size": 1, "size": 0},
        {"metrics": {"a": "nan", "b": "inf", "c": "-inf", "d": -1}, "created": 5},
        {"monitor": "", "mode": ""},
        {"monitor": "m", "mode": "min"},
        {"monitor": "m", "mode": "max"},
        {"dropped": [], "aliases": {}, "settings": {}},
    ):
        Manifest.from_json(changed(manifest(), changes))
    assert isinstance(Manifest.from_json(changed(manifest(), {"created": 5})).created, float)
    for created in (0, 0.5, 1e300):
        assert Manifest.from_json(changed(manifest(), {"created": created})).created == created
    for created in (-0.5, math.inf):
        assert refusal(changed(manifest(), {"created": created})) == (
            "/run/x.json is not a manifest: its time or host is not one"
        )
    first = manifest(generation=0, sequence=0, step=0)
    assert Manifest.from_json(first.to_json()) == first


def test_a_number_beyond_what_a_float_holds_is_refused(manifest: Make) -> None:
    for changes in ({"metrics": {"loss": 10**400}}, {"created": 10**400}):
        assert refusal(changed(manifest(), changes)) == (
            "/run/x.json is not a manifest: int too large to convert to float"
        )


def test_what_came_later_may_be_missing(manifest: Make) -> None:
    content = json.loads(manifest().to_json())
    for name in ("seal", "monitor", "mode", "settings"):
        del content[name]
    read = Manifest.from_json(json.dumps({**content, "seal": _seal(content)}).encode())
    assert (read.monitor, read.mode, read.settings) == ("", "", {})


def test_what_json_or_utf_8_cannot_hold(manifest: Make) -> None:
    odd = manifest(host="h\udcffst", versions={"torch": "\ud800"})
    assert b"h\\udcffst" in odd.to_json()
    assert Manifest.from_json(odd.to_json()) == odd
    with pytest.raises(ValueError, match="Out of range float"):
        manifest(settings={"lr": math.nan}).to_json()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[1]", "/run/x.json is not a manifest: it is not a JSON object"),
        (b"{}", "/run/x.json is not a manifest: its format is None, not a number"),
        (TEXT.replace("40,", "41,").encode(), "/run/x.json was changed after it was written: its seal does not match"),
        (TEXT.replace('"seal"', '"sealed"').encode(), "/run/x.json was changed after it was written: its seal does not "
                                                      "match"),
    ],
)  # fmt: skip
def test_every_file_that_is_none(data: bytes, words: str) -> None:
    assert refusal(data) == words
    assert refusal(b"{").startswith("/run/x.json is not a manifest: it is not JSON (Expecting ")


def test_a_newer_format(manifest: Make) -> None:
    assert refusal(changed(manifest(), {"format": 2}), CheckpointMismatchError) == (
        "/run/x.json has format 2, and this Minetorch reads up to 1: upgrade Minetorch to use it"
    )
    with pytest.raises(CheckpointCorruptError, match=r"^the manifest is not a manifest: it is not a JSON object$"):
        Manifest.from_json(b"3")
