"""Convenience links on a local disk: `latest.pth.tar`, `best.pth.tar`, `epoch_3.pth.tar` and a user's names.

They are for `torch.load(".../best.pth.tar")` by hand. Minetorch itself never follows them within a run: the manifests
are the truth, and a link that could not be made is only logged.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from minetorch.checkpoint.catalogue import name_table
from minetorch.checkpoint.names import PAYLOAD_SUFFIX, CheckpointName
from minetorch.errors import StorageError, visible

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from minetorch.checkpoint.manifest import Manifest
    from minetorch.checkpoint.store import Store


def wanted_links(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Which link names point to which payload file, for a folder with these checkpoints. Pure."""
    payloads = {manifest.name: manifest.payload for manifest in manifests}
    return {f"{name}{PAYLOAD_SUFFIX}": payloads[target] for name, target in name_table(manifests).items()}


def sync_links(store: Store, wanted: Mapping[str, str], logger: logging.Logger) -> None:
    """Make the links in a local folder those that are wanted, each replaced atomically. Other files are left alone."""
    try:
        present = _present_links(store.local_path())
    except OSError as err:
        logger.warning("could not update the links in %s: %s (the checkpoints are not affected)", store.url, err)
        return
    for link, target in present.items():
        if link not in wanted and CheckpointName.of_file(target) is not None:
            _attempt(logger, store, link, partial(store.delete, link))
    for link, target in wanted.items():
        if present.get(link) != target:
            _attempt(logger, store, link, partial(store.link, link, target))  # relative: the folder may be moved


def _present_links(folder: Path) -> dict[str, str]:
    links = (path for path in folder.iterdir() if path.name.endswith(PAYLOAD_SUFFIX) and path.is_symlink())
    return {path.name: str(path.readlink()) for path in links}


def _attempt(logger: logging.Logger, store: Store, link: str, action: Callable[[], None]) -> None:
    try:
        action()
    except StorageError as err:
        place, words = visible(store.url_of(link)), err.__cause__ or err
        logger.warning("could not update the link %s: %s (the checkpoints are not affected)", place, words)
