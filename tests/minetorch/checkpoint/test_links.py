from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minetorch.checkpoint import Checkpointer, Manifest, Store
from minetorch.checkpoint.links import sync_links, wanted_links

LOGGER = logging.getLogger("tests")


def links(folder: Path) -> dict[str, str]:
    return {path.name: str(path.readlink()) for path in folder.iterdir() if path.is_symlink()}


def test_names_point_as_the_newest_manifest_says(manifest: Callable[..., Manifest]) -> None:
    first = manifest(1, 1, 10, epoch=1)
    again = manifest(2, 1, 5, epoch=1)
    aliases = {"latest": "outdated", "best": first.name, "mine": again.name, "gone": manifest(9, 9, 9).name}
    middle = manifest(2, 2, 7, epoch=2, epoch_complete=False, aliases=aliases)
    assert wanted_links([middle, again, first]) == {
        "latest.pth.tar": middle.payload,
        "best.pth.tar": first.payload,
        "mine.pth.tar": again.payload,
        "epoch_1.pth.tar": again.payload,
    }
    assert wanted_links([]) == {}


def test_a_run_leaves_links_that_open_directly(
    tmp_path: Path, checkpointer: Callable[..., Checkpointer], save: Callable[..., Manifest]
) -> None:
    folder = tmp_path / "models"
    run = checkpointer(Store.open(folder), keep_last=1)
    run.open(False)
    save(run, 1, metrics={"val_loss": 0.1})
    save(run, 2, names=["before_surgery"])
    save(run, 3)
    moved = folder.rename(tmp_path / "moved")
    opened = {
        name.removesuffix(".pth.tar"): torch.load(moved / name, weights_only=True)["model"][0].item()
        for name in links(moved)
    }
    assert opened == {"latest": 3, "best": 1, "before_surgery": 2, "epoch_1": 1, "epoch_2": 2, "epoch_3": 3}


def test_links_are_moved_and_removed_and_other_files_left_alone(tmp_path: Path) -> None:
    payloads = ["g0001-000001-s000000001-aaaaaa.pth.tar", "g0001-000002-s000000002-bbbbbb.pth.tar"]
    (tmp_path / "theirs.pth.tar").symlink_to("/somewhere/else.pth.tar")
    (tmp_path / "file.pth.tar").write_text("theirs")
    sync_links(Store.open(tmp_path), {"latest.pth.tar": payloads[0], "epoch_1.pth.tar": payloads[0]}, LOGGER)
    sync_links(Store.open(tmp_path), {"latest.pth.tar": payloads[1]}, LOGGER)
    assert links(tmp_path) == {"latest.pth.tar": payloads[1], "theirs.pth.tar": "/somewhere/else.pth.tar"}
    assert (tmp_path / "file.pth.tar").read_text() == "theirs"


def test_a_file_in_the_way_is_kept_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "best.pth.tar").write_text("of the original Minetorch")
    sync_links(Store.open(tmp_path), {"best.pth.tar": "x.pth.tar", "latest.pth.tar": "x.pth.tar"}, LOGGER)
    assert "could not update the link" in caplog.text
    assert "left as it is" in caplog.text
    assert (tmp_path / "best.pth.tar").read_text() == "of the original Minetorch"
    assert list(links(tmp_path)) == ["latest.pth.tar"]


def test_a_file_system_without_links_only_loses_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    checkpointer: Callable[..., Checkpointer],
    save: Callable[..., Manifest],
) -> None:
    def refuse(self: Path, target: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    run = checkpointer(Store.open(tmp_path))
    run.open(False)
    save(run, 1)
    assert "Operation not permitted" in caplog.text
    again = checkpointer(Store.open(tmp_path)).open("best.pth.tar")
    assert again is not None
    assert again.manifest is not None
