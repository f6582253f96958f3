"""How far a run has come. Counters only: nothing is shown or stored here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from minetorch.data import Batch
from minetorch.data.stream import StreamPosition


@dataclass
class Progress:
    """Counters of the whole world, saved in every checkpoint."""

    epoch: int = 0
    """The current epoch, counted from 1; 0 before the first."""
    epoch_complete: bool = True
    """Whether the current epoch has ended."""
    iteration: int = 0
    """Iterations of the current epoch that are done: batches on one rank."""
    position: int = 0
    """Units of the epoch's global order that are done: samples, or the user's own batches."""
    step: int = 0
    """Optimizer steps since the run's first start."""
    samples: int = 0
    """Samples of all ranks since the run's first start."""
    samples_in_epoch: int = 0
    """Samples of all ranks in the current epoch."""
    loss_sum: float = 0.0
    """Sum of the current epoch's training losses over its samples so far, of all ranks, as of the last save."""
    loss_sums: list[float] = field(default_factory=list)
    """Each rank's part of it. Summed up anew at each save, the last bits would depend on when there was one."""
    stream: StreamPosition | None = None
    """Where the readers of an IterableDataset stand in the epoch."""
    data: dict[str, Any] | None = None
    """What tells the epoch's data from other data (see `EpochData`); None in checkpoints of before this was kept."""

    def start_epoch(self) -> None:
        """Turn to the next epoch, or stay in one that a checkpoint left unfinished."""
        if self.epoch_complete:
            self.epoch += 1
            self.epoch_complete = False
            self.iteration = self.position = self.samples_in_epoch = 0
            self.loss_sum, self.loss_sums, self.stream, self.data = 0.0, [], None, None

    def count(self, batch: Batch) -> None:
        """Count an iteration on all ranks."""
        self.iteration += 1
        self.position += batch.units
        self.samples += batch.total
        self.samples_in_epoch += batch.total
        self.stream = batch.stream

    def state_dict(self) -> dict[str, Any]:
        """The counters by name."""
        stream = None if self.stream is None or self.epoch_complete else self.stream.to_plain()
        return {one.name: getattr(self, one.name) for one in fields(self)} | {"stream": stream}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over counters that `state_dict` returned; those it lacks stay."""
        for one in fields(self):
            if one.name in state_dict:
                setattr(self, one.name, state_dict[one.name])
        stream = state_dict.get("stream")
        self.stream = None if stream is None else StreamPosition.from_plain(stream)
