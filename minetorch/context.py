"""What a hook or plugin sees of a run, as its `trainer`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import nn

from minetorch.data import Batch, RankLoader
from minetorch.distributed.stop_vote import StopVote
from minetorch.distributed.world import ReduceOp, World
from minetorch.drawers import Drawers
from minetorch.drawers.drawer import RunStore
from minetorch.options.settings import Settings
from minetorch.progress import Progress
from minetorch.strategies.base import Strategy
from minetorch_launch.heartbeat import HeartbeatWriter

if TYPE_CHECKING:
    from accelerate import Accelerator

    from minetorch.training.modes import Modes


class TrainerState:
    """The state of a run, and what a hook may ask of it. `Trainer` adds the loop.

    Hooks run on every rank unless marked `minetorch.main_only`. On ranks other than 0, `drawer` is silent
    and `logger` shows only warnings on the console.
    """

    settings: Settings
    """The run's options."""
    world: World
    """This worker's place among all, and the collectives."""
    strategy: Strategy
    progress: Progress
    """Counters of epochs, iterations, steps and samples."""
    optimizer: torch.optim.Optimizer
    train_dataloader: RankLoader
    """This rank's share of the training data, all of it in a `main_only` hook; batches come on `device`."""
    val_dataloader: RankLoader | None
    """The same of the validation data."""
    logger: logging.Logger
    """Writes to the console and `log.txt` on rank 0, to `logs/rank_N.txt` on another."""
    drawer: Drawers
    """Draws curves on rank 0: `drawer.scalar(value, graph)`, `drawer.scalars({name: value}, graph)`."""
    metrics: dict[str, float]
    """The newest epoch's figures: `train_loss`, `val_loss`, and what hooks add for `monitor` to watch."""
    train_iterations: int | None
    """Training iterations of an epoch on this rank; None where the data has no length."""
    val_iterations: int | None
    """Validation iterations on this rank; None where there are none, or the data has no length."""
    lowest_train_loss: float
    lowest_val_loss: float
    batch: Batch | None
    """The batch of the current iteration. `batch.indices` are its samples, and `batch.counted` is how many count."""
    files: RunStore
    """The run's directory: `files.write("table.csv", data)`. For rank 0, unless each rank has files of its own."""
    around_validation: list[Callable[[], AbstractContextManager[Any]]]
    """Called before every validation, on every rank; each validation runs within what they return."""
    _modes: Modes
    _stop_vote: StopVote
    _heartbeat: HeartbeatWriter
    _loss_func: Callable[[Any, Any], Any]
    _names_of_next_save: list[str]

    def __init__(self) -> None:
        self.progress = Progress()
        self.metrics = {}
        self.lowest_train_loss = self.lowest_val_loss = float("inf")
        self.batch = None
        self.around_validation = []
        self._names_of_next_save = []

    @property
    def rank(self) -> int:
        """Global rank of this worker, from 0."""
        return self.world.rank

    @property
    def world_size(self) -> int:
        """Number of workers on all nodes."""
        return self.world.size

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.world.is_main

    @property
    def device(self) -> torch.device:
        """Where this worker computes, and where its batches are."""
        return self.world.device

    @property
    def model(self) -> nn.Module:
        """The model to call in the loss function: with several workers, wrapped in DDP.

        It is in train mode while an epoch trains, and in eval mode from then on to the next epoch.
        """
        return self.strategy.model

    @property
    def unwrapped_model(self) -> nn.Module:
        """The user's own model. A loss function that calls it in place of `model` gets no gradients of other ranks."""
        return self.strategy.unwrapped_model

    @property
    def accelerator(self) -> Accelerator:
        """The `accelerate.Accelerator` underneath."""
        return self.strategy.accelerator

    @property
    def current_epoch(self) -> int:
        """The epoch under way, or just ended, counted from 1."""
        return self.progress.epoch

    @property
    def max_epochs(self) -> int | None:
        """The last epoch; None where there is no end."""
        return self.settings.max_epochs

    @property
    def code(self) -> str:
        """Name of the run."""
        return self.settings.code

    @property
    def in_notebook(self) -> bool:
        """Whether output is shown as a notebook can."""
        return self.settings.in_notebook

    @overload
    def reduce(self, value: torch.Tensor, op: ReduceOp = "mean") -> torch.Tensor: ...
    @overload
    def reduce(self, value: float, op: ReduceOp = "mean") -> float: ...
    def reduce(self, value: torch.Tensor | float, op: ReduceOp = "mean") -> Any:
        """Combine a value of each rank: see `World.reduce`. Every rank must call it."""
        return self.world.reduce(value, op)

    @contextmanager
    def alone(self, where: str) -> Iterator[None]:
        """A context for code that rank 0 runs alone: no collective is allowed, and the loaders give the whole data.

        Args:
            where: named in the error of a collective, as in "hook 'after_epoch_end'".
        """
        shares = self.train_dataloader, self.val_dataloader
        self.train_dataloader = self.train_dataloader.alone()
        self.val_dataloader = None if self.val_dataloader is None else self.val_dataloader.alone()
        try:
            with self.world.alone(where):
                yield
        finally:
            self.train_dataloader, self.val_dataloader = shares

    def lacks_metric(self, name: str) -> bool:
        """Whether this epoch has no such metric, and should have it.

        Epochs without validation, by `eval_stride`, need not have it.
        """
        if name in self.metrics or self.current_epoch % self.settings.eval_stride:
            return False
        return name != "val_loss" or self.val_dataloader is None  # one without a sample gives no loss

    def graceful_stop(self) -> None:
        """Stop all ranks after this epoch, its validation and its checkpoint. From a hook on any rank."""
        self._stop_vote.ask("stop_after_epoch")

    def save_and_stop(self) -> None:
        """Save a checkpoint and stop all ranks, in the middle of the epoch. From a hook on any rank.

        Alone, a worker stops after the current optimizer step; with others, at most 16 steps later.
        """
        self._stop_vote.ask("save_and_stop")

    def save_soon(self, *names: str) -> None:
        """Save a checkpoint, as soon as `save_and_stop` would. From a hook on any rank.

        At `after_epoch_end` this is the epoch's own checkpoint.

        Args:
            names: for that checkpoint, beside its own. Those that rank 0 gives are taken.
        """
        self._names_of_next_save += names
        self._stop_vote.ask("save")
