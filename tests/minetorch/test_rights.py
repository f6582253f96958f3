"""Files have the rights that the user's umask gives, no more and no less; what is temporary is private."""

import os
import stat
import tempfile
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from minetorch.plugins import EMA


@pytest.fixture(autouse=True)
def memory():
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def rights(path):
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o002, 0o027, 0o077], indirect=True, ids=oct)
def test_a_run_has_the_umasks_rights(make_trainer, command, tmp_path, umask):
    trainer = make_trainer(code="a/plan", drawer=["matplotlib", "tensorboard", "sql"], ledger=True, plugins=[EMA(0.5)])
    trainer.train()
    run = tmp_path / "runs/a/plan"
    command("report", run, "--out", tmp_path / "runs/page.html")
    command("export", run, "latest", tmp_path / "runs/out.pth")
    command("cp", run, tmp_path / "runs/copy/plan")
    kinds = set()
    for path in (tmp_path / "runs").rglob("*"):
        if path.is_symlink():
            continue
        whole = 0o777 if path.is_dir() else 0o666
        # SQLite lets nobody but the owner write to a file that it makes.
        allowed = {whole & ~umask, 0o644 & ~umask} if path.suffix == ".db" else {whole & ~umask}
        assert rights(path) in allowed, path
        kinds.add(path.suffix or path.name.partition(".")[0])
    assert kinds >= {".tar", ".json", ".txt", ".png", ".db", ".html", ".pth", "models"}


def test_temporary_files_are_private(make_trainer, tmp_path, monkeypatch):
    """Before they are sent, TensorBoard's files of a remote run stand on this machine."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    seen = {}

    def spy(*words, make=tempfile.mkdtemp, **names):
        folder = make(*words, **names)
        seen[folder] = rights(Path(folder))
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", spy)
    make_trainer(alchemistic_directory=f"memory://rights-{tmp_path.name}", drawer="tensorboard").train()
    assert set(seen.values()) == {0o700}
    assert list(scratch.iterdir()) == []
