"""Keeps the ledger of samples: what each step of this rank has really trained on. `minetorch.ledger` reads it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from minetorch.checkpoint.names import CheckpointName
from minetorch.errors import StorageError
from minetorch.ledger import FOLDER, Start, file_name, pack

if TYPE_CHECKING:
    from minetorch.checkpoint.store import Store
    from minetorch.context import TrainerState

_BUFFER = 1 << 16
"""Bytes that are gathered before they are written to a local disk."""


class KeepLedger:
    """Notes each iteration's samples on every rank, and has them in the storage before a checkpoint is.

    On a local disk a rank appends to its one file; a process that is killed loses rows only of steps that are lost with
    it. To any other storage a part is written at each checkpoint, since objects cannot be appended to. A storage that
    fails stops nothing: that is said, and the rows are tried again with the next.
    """

    def __init__(self, store: Store, origin: Callable[[], tuple[int, str | None]], logger: logging.Logger) -> None:
        """Nothing is written before the first checkpoint.

        Args:
            store: the run's directory.
            origin: which start of the run this is, and the checkpoint that it went on from; asked when that is known.
            logger: told of what cannot be written.
        """
        self._run = store
        self._store = store.child(FOLDER)
        self._origin = origin
        self._logger = logger
        self._start: Start | None = None
        self._rows = bytearray()
        self._parts = 0
        self._file: int | None = None
        self._begun = False

    def after_init(self, trainer: TrainerState) -> None:
        """Note where this start goes on."""
        generation, path = self._origin()
        parent = CheckpointName.of_file(path.rpartition("/")[2]) if path is not None else None
        here = path is not None and path.startswith(f"{self._run.url}/")
        progress = trainer.progress
        self._start = Start(
            generation=generation,
            rank=trainer.rank,
            world_size=trainer.world_size,
            resumed_from=path,
            parent=parent.generation if parent is not None and here else None,
            epoch=progress.epoch,
            iteration=progress.iteration,
            step=progress.step,
        )

    def after_train_iteration_end(self, trainer: TrainerState) -> None:
        """Note the samples."""
        progress, batch = trainer.progress, trainer.batch
        assert batch is not None
        self._rows += pack(
            progress.epoch,
            progress.iteration,
            progress.position,
            progress.step,
            batch.counted,
            batch.total,
            batch.indices,
        )
        if len(self._rows) >= _BUFFER and self._store.is_local:
            self._write()

    def before_checkpoint_persisted(self, trainer: TrainerState) -> None:
        """Have the rows in the storage before the checkpoint that they have led to."""
        self._write()

    def close(self) -> None:
        """Write the last rows, and let go of the file."""
        if self._start is not None:
            self._write()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self) -> None:
        # A start of which a checkpoint is there must be known, if only for what was before it.
        if self._begun and not self._rows:
            return
        assert self._start is not None
        try:
            if self._store.is_local:
                self._append(self._start)
            else:
                self._write_part(self._start)
        except (OSError, StorageError) as error:
            self._logger.warning("The ledger could not be written: %s", error)

    def _append(self, start: Start) -> None:
        if self._file is None:
            self._store.make_folder()
            path = self._store.local_path(file_name(start.generation, start.rank))
            # Not through a link, by which a run that somebody sent would write to any file of its user's.
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._file = os.open(path, flags, 0o666)
        if not self._begun:
            self._rows[:0] = start.to_line()
            self._begun = True
        while self._rows:
            del self._rows[: os.write(self._file, self._rows)]

    def _write_part(self, start: Start) -> None:
        self._store.write(file_name(start.generation, start.rank, self._parts + 1), start.to_line() + self._rows)
        self._begun = True
        self._parts += 1
        self._rows.clear()
