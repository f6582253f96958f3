"""A start's permission to change the files of its run on a local disk, which the next start takes away.

A process can be stopped at any moment, also between asking whether it may write and writing. So asking is not enough:
every change of a name goes through a folder that only this start uses. A new file is written there and renamed to its
place, and a file that is deleted is renamed into it. A later start removes that folder before it reads the run. From
then on these renames fail, since one of their two ends does not exist: the kernel, or the server of a network file
system, compares and acts at once.

The folder also shows that the run is still where it was: if somebody renames, deletes or unmounts the run's directory,
the folder is gone, and nothing is written to an empty directory of the same name.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from minetorch.errors import ConfigurationError

if TYPE_CHECKING:
    from minetorch.checkpoint.store import Store

TEMPORARY = ".minetorch-tmp-"
"""How the names of temporary files and folders begin; a listing leaves them out."""

OWN_FOLDERS = ("graph", "images", "ledger", "logs", "models", "models/writers")
"""The folders of a run's directory that Minetorch writes to by itself."""

_FOLDER = re.compile(rf"{re.escape(TEMPORARY)}g([0-9]{{4,18}})(\.revoked)?")


class Permit:
    """One start's permission."""

    def __init__(self, run: Path, claims: Path, generation: int) -> None:
        """Nothing is written yet.

        Args:
            run: the run's directory.
            claims: the folder in which the starts of the run write their claims.
            generation: the number of this start.
        """
        self.run = run
        self._claims = claims
        self._generation = generation
        self._folder = claims / f"{TEMPORARY}g{generation:04d}"

    def grant(self) -> None:
        """Create the folder. The caller then looks again whether a later start has claimed the run."""
        check_inside(self._claims, self.run)
        with suppress(FileExistsError):
            self._folder.mkdir()

    def revoke_earlier(self) -> None:
        """Take the permission away from all earlier starts. What they have not finished is deleted with it."""
        for path in list(self._claims.iterdir()):
            match = _FOLDER.fullmatch(path.name)
            if match is None or int(match[1]) >= self._generation:
                continue
            # Renamed first: a process that still runs finds no folder any more in which it could create a file.
            revoked = path if match[2] else path.with_name(f"{path.name}.revoked")
            if path != revoked:
                shutil.rmtree(revoked, ignore_errors=True)
                with suppress(FileNotFoundError):
                    path.rename(revoked)
            shutil.rmtree(revoked, ignore_errors=True)

    def end(self) -> None:
        """Give the permission back."""
        with suppress(PermissionError):
            check_inside(self._claims, self.run)
            shutil.rmtree(self._folder, ignore_errors=True)

    def check(self) -> None:
        """Return if the permission is valid.

        Raises:
            FileNotFoundError: it was taken away, or the run's directory is gone.
            PermissionError: a link leads out of the run.
        """
        check_inside(self._folder, self.run)
        if not self._folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._folder))

    def folder_for(self, folder: Path) -> Path:
        """The folder for the temporary end of a rename from or to another folder of the run."""
        if folder.is_dir() and folder.stat().st_dev != self._folder.stat().st_dev:
            return folder  # another disk is mounted there, to which nothing can be renamed
        return self._folder

    def may_make(self, folder: Path) -> bool:
        """Whether a folder that is missing may be made: not if the permission's own folder must be in it."""
        return folder not in self._folder.parents


def check_folders(store: Store) -> None:
    """Return if all folders that Minetorch writes to are in the run's directory, which may itself be a link.

    Args:
        store: the run's directory.

    Raises:
        ConfigurationError: one of them is a link that leads out of it.
    """
    if not store.is_local:
        return
    for name in OWN_FOLDERS:
        path = store.local_path(name)
        try:
            check_inside(path, store.local_path())
        except PermissionError:
            raise ConfigurationError(
                f"{path} is a link that leads out of the run, to {os.path.realpath(path)}: Minetorch does not write "
                "through it, because the person who sent you the run may have made it. If it is yours, move the folder "
                "to where the link is. To keep a run on another disk, make the run's directory itself the link"
            ) from None


def check_inside(path: str | os.PathLike[str], run: Path) -> None:
    """Return if a folder of a run is in the run's directory.

    Raises:
        PermissionError: a link leads out of it.
    """
    inside, root = os.path.realpath(path), os.path.realpath(run)
    if inside != root and not inside.startswith(f"{root.rstrip(os.sep)}{os.sep}"):
        raise PermissionError(errno.EPERM, f"a link leads out of the run, to {inside}", os.fspath(path))
