from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minetorch.checkpoint.names import CheckpointName, Wanted, check_alias, parse_resume
from minetorch.errors import ConfigurationError


def test_a_name_says_who_wrote_it_and_when() -> None:
    name = CheckpointName(1, 12, 120, "3fa9c1")
    assert str(name) == "g0001-000012-s000000120-3fa9c1"
    assert name.payload == f"{name}.pth.tar"
    assert name.manifest == f"{name}.json"
    assert CheckpointName.parse(str(name)) == name
    assert {CheckpointName.of_file(file) for file in name.files} == {name}


def test_names_are_unique_and_sort_as_text_like_they_supersede() -> None:
    names = [CheckpointName.new(g, n, s) for g, n, s in [(1, 1, 500), (1, 2, 600), (2, 1, 5), (2, 2, 5), (10, 1, 1)]]
    assert names == sorted(names)
    assert [str(name) for name in names] == sorted(map(str, names))
    assert len({str(CheckpointName.new(1, 1, 1)) for _ in range(50)}) > 45


@pytest.mark.parametrize(
    "text",
    ["", "latest", "g1-1-s1-abcdef", "g00001-000001-s000000001-abcdef", "g0001-000001-s000000001-ABCDEF", "../g"],
)
def test_other_text_is_no_name(text: str) -> None:
    assert CheckpointName.parse(text) is None
    assert CheckpointName.of_file(f"{text}.json") is None
    assert CheckpointName.of_file("g0001-000001-s000000001-abcdef.txt") is None


@pytest.mark.parametrize("alias", ["before_surgery", "v1.2", "A-b", "_x", "3rd", "epochs", "a" * 100])
def test_names_a_user_may_give(alias: str) -> None:
    assert check_alias(alias) == alias


@pytest.mark.parametrize(
    "alias",
    [
        *["", " ", "a b", "a/b", "..", ".hidden", "-x", "ünï", "a\n", "a" * 101, "a\0"],
        *["latest", "best", "epoch_3", "epoch_x", "3", "1e5", "-3", "nan", "1_000"],
        *["x.json", "x.pth.tar", "g0001-000001-s000000001-abcdef", 3, None],
    ],
)
def test_names_a_user_may_not_give(alias: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot be named"):
        check_alias(alias)


@pytest.mark.parametrize(
    ("resume", "wanted"),
    [
        (True, Wanted("newest")),
        (False, Wanted("fresh")),
        (1, Wanted("epoch", epoch=1)),
        (0, Wanted("epoch", epoch=0)),
        (np.int64(3), Wanted("epoch", epoch=3)),
        ("3", Wanted("epoch", epoch=3)),
        ("epoch_3", Wanted("epoch", epoch=3)),
        ("epoch_3.pth.tar", Wanted("epoch", epoch=3)),
        ("best", Wanted("name", text="best")),
        ("latest.pth.tar", Wanted("name", text="latest.pth.tar")),
        ("/a/b.pth.tar", Wanted("elsewhere", text="/a/b.pth.tar")),
        (Path("b.pth.tar"), Wanted("elsewhere", text="b.pth.tar")),
        ("~/b.pth.tar", Wanted("elsewhere", text="~/b.pth.tar")),
        ("s3://b/c.pth.tar", Wanted("elsewhere", text="s3://b/c.pth.tar")),
    ],
)
def test_what_resume_means(resume: Any, wanted: Wanted) -> None:
    assert parse_resume(resume) == wanted


@pytest.mark.parametrize("resume", ["", "  ", None, 1.5, b"best", ["best"], "a\0b"])
def test_what_resume_cannot_be(resume: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"resume=.*give True"):
        parse_resume(resume)
