"""The commit of a script's repository, read without git, is the one that git tells."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from minetorch.checkpoint.fingerprint import code_of

Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """Runs git in a repository with one commit, `train.py` in a folder of it."""
    if shutil.which("git") is None:
        pytest.skip("no git here")
    whose = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environ = {**os.environ, **whose, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        environ.pop(name, None)

    def run(*words: str) -> str:
        command = ["git", "-C", str(tmp_path / "repo"), *words]
        return subprocess.run(
            command, env=environ, check=True, capture_output=True, text=True, timeout=60
        ).stdout.strip()

    script = tmp_path / "repo/src/train.py"
    script.parent.mkdir(parents=True)
    script.write_text("pass\n")
    run("init", "--quiet")
    run("add", "-A")
    run("commit", "--quiet", "--message", "first")
    return run


def test_on_a_branch(git: Git, tmp_path: Path) -> None:
    assert code_of(str(tmp_path / "repo/src/train.py")) == {
        "script": "train.py",
        "digest": f"sha256:{hashlib.sha256(b'pass' + os.linesep.encode()).hexdigest()}",
        "commit": git("rev-parse", "HEAD"),
    }


def test_on_a_branch_that_was_packed(git: Git, tmp_path: Path) -> None:
    git("commit", "--quiet", "--allow-empty", "--message", "second")
    git("pack-refs", "--all")
    assert code_of(str(tmp_path / "repo/src/train.py"))["commit"] == git("rev-parse", "HEAD")


def test_on_no_branch(git: Git, tmp_path: Path) -> None:
    git("checkout", "--quiet", "--detach")
    assert code_of(str(tmp_path / "repo/src/train.py"))["commit"] == git("rev-parse", "HEAD")


def test_in_a_worktree(git: Git, tmp_path: Path) -> None:
    git("worktree", "add", "--quiet", "-b", "other", str(tmp_path / "tree"))
    git("commit", "--quiet", "--allow-empty", "--message", "second")
    found = code_of(str(tmp_path / "tree/src/train.py"))["commit"]
    assert found == git("rev-parse", "other") != git("rev-parse", "HEAD")


def test_without_a_commit_or_a_repository_or_a_script(git: Git, tmp_path: Path) -> None:
    git("checkout", "--quiet", "--orphan", "empty")
    assert "commit" not in code_of(str(tmp_path / "repo/src/train.py"))
    alone = tmp_path / "alone.py"
    alone.write_text("")
    assert set(code_of(str(alone))) == {"script", "digest"}
    assert code_of(str(tmp_path / "none.py")) == {}


def test_a_repository_that_cannot_be_read(git: Git, tmp_path: Path) -> None:
    (tmp_path / "repo/.git/HEAD").unlink()
    assert code_of(str(tmp_path / "repo/src/train.py")) == {}
