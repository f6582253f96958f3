from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from minetorch.checkpoint.local_disk import LocalDisk


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_rights_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        LocalDisk().write(str(tmp_path / "written"), b"x")
        LocalDisk().create(str(tmp_path / "created"), b"x")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


def test_data_and_folders_are_durable_before_a_write_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        synced.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    LocalDisk().write(str(tmp_path / "a/b/c"), b"x")
    where = [Path(path).name.partition("-tmp-")[0] for path in synced]
    assert where == [tmp_path.name, "a", ".minetorch", "replace", "b"]


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    LocalDisk().write(str(path), b"x")
    assert LocalDisk().list(str(tmp_path)) == [path.name]


def test_the_temporary_files_of_others_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".minetorch-tmp-0123").touch()
    (tmp_path / ".hidden").touch()
    assert LocalDisk().list(str(tmp_path)) == [".hidden"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    LocalDisk().write(str(tmp_path / "a"), b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        LocalDisk().write(str(tmp_path / "a"), b"new")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
def test_creates_without_hard_links_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    LocalDisk().create(str(tmp_path / "a"), b"mine")
    with pytest.raises(FileExistsError):
        LocalDisk().create(str(tmp_path / "a"), b"yours")
    assert (tmp_path / "a").read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_file_system_that_cannot_sync_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def files_only(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    LocalDisk().write(str(tmp_path / "a/b"), b"x")
    assert (tmp_path / "a/b").read_bytes() == b"x"
