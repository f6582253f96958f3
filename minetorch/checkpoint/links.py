"""Convenience links on a local disk: `latest.pth.tar`, `best.pth.tar`, `epoch_3.pth.tar` and a user's names.

They are for `torch.load(".../best.pth.tar")` by hand. Minetorch itself never follows them within a run: the manifests
are the truth, and a link that could not be made is only logged.
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING

from minetorch.checkpoint.catalogue import name_table
from minetorch.checkpoint.local_disk import TEMPORARY
from minetorch.checkpoint.names import PAYLOAD_SUFFIX, CheckpointName

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from minetorch.checkpoint.manifest import Manifest


def wanted_links(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Which link names point to which payload file, for a folder with these checkpoints. Pure."""
    payloads = {manifest.name: manifest.payload for manifest in manifests}
    return {f"{name}{PAYLOAD_SUFFIX}": payloads[target] for name, target in name_table(manifests).items()}


def sync_links(folder: Path, wanted: Mapping[str, str], logger: logging.Logger) -> None:
    """Make the links in a folder those that are wanted, each replaced atomically. Other files are left alone."""
    try:
        present = _present_links(folder)
    except OSError as err:
        logger.warning("could not update the links in %s: %s (the checkpoints are not affected)", folder, err)
        return
    for link, target in present.items():
        if link not in wanted and CheckpointName.of_file(target) is not None:
            _attempt(logger, folder / link, (folder / link).unlink)
    for link, target in wanted.items():
        path = folder / link
        if not _points_to(path, target):
            _attempt(logger, path, partial(_replace_link, path, target))


def _present_links(folder: Path) -> dict[str, str]:
    links = (path for path in folder.iterdir() if path.name.endswith(PAYLOAD_SUFFIX) and path.is_symlink())
    return {path.name: str(path.readlink()) for path in links}


def _points_to(path: Path, target: str) -> bool:
    try:
        return str(path.readlink()) == target
    except OSError:
        return False


def _replace_link(path: Path, target: str) -> None:
    if path.exists() and not path.is_symlink():
        raise FileExistsError("a file that Minetorch did not make stands there; it is left as it is")
    # Relative, so that the folder can be moved or copied.
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    temporary.symlink_to(target)
    try:
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _attempt(logger: logging.Logger, path: Path, action: Callable[[], None]) -> None:
    try:
        action()
    except OSError as err:
        logger.warning("could not update the link %s: %s (the checkpoints are not affected)", path, err)
