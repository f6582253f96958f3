"""What tells the code and the environment that made a checkpoint, without telling any path of the machine."""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path

import torch

from minetorch.version import __version__


def versions() -> dict[str, str]:
    """Of minetorch, torch, python and, where it is there, CUDA."""
    found = {"minetorch": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    return found


def code_of(script: str | None = None) -> dict[str, str]:
    """The script's name, the digest of its file and the commit checked out around it, as far as they can be found.

    Args:
        script: the script's path; the running one by default.
    """
    path = Path(script if script is not None else getattr(sys.modules.get("__main__"), "__file__", None) or "")
    try:
        found = {"script": path.name, "digest": f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"}
        commit = _commit(path.resolve().parent)
    except OSError:
        return {}
    return found | ({"commit": commit} if commit else {})


def _commit(folder: Path) -> str | None:
    """The commit that is checked out in the repository around a folder, read without running git."""
    git = next((parent / ".git" for parent in (folder, *folder.parents) if (parent / ".git").exists()), None)
    if git is None:
        return None
    if git.is_file():  # a worktree
        git = Path(git.parent, git.read_text().partition("gitdir:")[2].strip())
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref: "):
        return head
    reference = head.removeprefix("ref: ")
    common = git / "commondir"
    shared = Path(git, common.read_text().strip()) if common.exists() else git
    for place in (git / reference, shared / reference):
        if place.exists():
            return place.read_text().strip()
    packed = shared / "packed-refs"
    lines = packed.read_text().splitlines() if packed.exists() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {reference}")), None)
