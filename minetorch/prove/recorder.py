"""Writes down what a Trainer does under `minetorch prove`, and has its process killed where that is wanted.

Each rank of each start writes a file of JSON lines, `proof/g0002.r0001.jsonl` in the run's directory: `{"start": …}`,
then a `{"row": …}` for each iteration, and `{"end": …}` if it comes to that. `{"names": …}` stands before the first
line whose digests of tensors are in that order. Each line is with the system before the next thing happens, so that no
kill loses one.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from minetorch.prove import digests
from minetorch.prove.orders import RECORDS, Kill, Orders

if TYPE_CHECKING:
    from minetorch.context import TrainerState

_BYTES_A_STEP = 128 << 20
"""Of tensors that are digested at each step; a larger state is digested at every second, third, … step."""
_TENSORS_A_STEP = 2000

_PATIENCE_S = 120.0
_POLL_S = 0.01


class Recorder:
    """One rank's recorder, to be called after all other hooks."""

    def __init__(
        self,
        orders: Orders,
        run: Path,
        *,
        generation: Callable[[], int],
        persist: Callable[[], object],
        saved: Collection[Any],
    ) -> None:
        """Nothing is written before the Trainer is ready.

        Args:
            orders: what is wanted.
            run: the run's directory.
            generation: which start of the run this is; asked when that is known.
            persist: saves a checkpoint, and waits until it is durable; every rank calls it.
            saved: the user's objects that are in the checkpoint.
        """
        self._orders = orders
        self._run = run
        self._name = run.relative_to(orders.runs).as_posix()
        self._generation = generation
        self._persist = persist
        self._saved = saved
        self._file: IO[str] | None = None
        self._names: dict[str, list[str]] = {}
        self._seen: dict[str, Any] = {}
        self._gradients: str | None = None
        self._stride = 1
        self._step = self._begun = 0
        self._number = 0
        self._pids: list[int] = []

    def after_init(self, trainer: TrainerState) -> None:
        """Write down what this start begins with.

        Raises:
            SystemExit: there is nothing left to do.
        """
        settings, progress = trainer.settings, trainer.progress
        self._orders.check(settings)
        generation = self._generation()
        folder = self._run / RECORDS
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"g{generation:04d}.r{trainer.rank:04d}.jsonl").open("w", buffering=1)
        self._pids = trainer.world.gather(os.getpid())
        self._parameters = {id(parameter): name for name, parameter in trainer.unwrapped_model.named_parameters()}
        tensors = [tensor for _, tensor in digests.model_tensors(trainer.unwrapped_model)]
        size = 3 * sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self._stride = 1 + max(size // _BYTES_A_STEP, 3 * len(tensors) // _TENSORS_A_STEP)
        self._step = self._begun = progress.step
        self._number = generation
        trainer.optimizer.register_step_pre_hook(self._before_step)
        self._write(
            start={
                "generation": generation,
                "rank": trainer.rank,
                "world_size": trainer.world_size,
                "epoch": progress.epoch,
                "iteration": progress.iteration,
                "step": progress.step,
                "device": trainer.device.type,
                "strategy": settings.strategy.name,
                "every_steps": settings.checkpoints.every_steps,
                "stride": self._stride,
                "parameters": list(self._parameters.values()),
                "unsaved_buffers": _unsaved_buffers(trainer.unwrapped_model),
                "settings": digests.optimizer_settings(trainer.optimizer),
                "tensors": self._digest_tensors(trainer),
            }
        )
        self._end_if_due(trainer)

    def before_train_iteration_start(self, trainer: TrainerState, data: Any) -> None:
        """Look at what the iteration begins with."""
        assert trainer.batch is not None
        self._seen = {
            "samples": digests.of_data(list(trainer.batch.indices)),
            "data": digests.of_data(data),
            "generators": digests.of_generators(trainer.device),
        }
        self._gradients = None

    def after_train_iteration_end(self, trainer: TrainerState, loss: torch.Tensor) -> None:
        """Write down the iteration; kill, or end, if it is time.

        Raises:
            SystemExit: these are the steps that were asked for.
        """
        progress = trainer.progress
        stepped, self._step = progress.step > self._step, progress.step
        row = {
            "epoch": progress.epoch,
            "iteration": progress.iteration,
            "step": progress.step,
            **self._seen,
            "loss": float(loss).hex(),
        }
        if stepped:
            row["settings"] = digests.optimizer_settings(trainer.optimizer)
        if stepped and self._is_due(progress.step):
            row["gradients"] = self._gradients
            row["tensors"] = self._digest_tensors(trainer)
        self._write(row=row)
        if stepped:
            self._kill_if_due(trainer)
            self._end_if_due(trainer)

    def before_quit(self, trainer: TrainerState) -> None:
        """Write down the end."""
        self._end(trainer)

    def _is_due(self, step: int) -> bool:
        return step % self._stride == 0

    def _before_step(self, optimizer: torch.optim.Optimizer, arguments: Any, keywords: Any) -> None:
        if not self._is_due(self._step + 1):
            return
        gradients = [
            (self._parameters.get(id(parameter), "?"), parameter.grad)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        self._name_order("gradients", [name for name, _ in gradients])
        self._gradients = digests.packed(digests.of_tensor(gradient) for _, gradient in gradients)

    def _digest_tensors(self, trainer: TrainerState) -> str:
        values: list[tuple[str, Any]] = [
            *digests.model_tensors(trainer.unwrapped_model),
            *digests.optimizer_values(trainer.optimizer, self._parameters),
        ]
        self._name_order("tensors", [name for name, _ in values])
        return digests.packed(digests.of_data(value) for _, value in values)

    def _name_order(self, what: str, names: list[str]) -> None:
        if self._names.get(what) != names:
            self._names[what] = names
            self._write(names={what: names})

    def _kill_if_due(self, trainer: TrainerState) -> None:
        due = self._orders.next_kill(self._name, trainer.progress.step)
        if due is None:
            return
        number, kill = due
        if trainer.rank == kill.rank % trainer.world_size:
            self._wait_for_a_checkpoint(trainer)
            self._orders.begin_kill(number)
            self._kill(kill)

    def _wait_for_a_checkpoint(self, trainer: TrainerState) -> None:
        """Return when this start has saved what it has begun to save first, or all it did would be lost.

        Later saves may well be under way.
        """
        every = trainer.settings.checkpoints.every_steps
        if not every or trainer.progress.step // every == self._begun // every:
            return
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline and not any(self._run.glob(f"models/g{self._number:04d}-*.json")):
            time.sleep(_POLL_S)

    def _kill(self, kill: Kill) -> None:
        if kill.what == "notice":
            os.kill(os.getpid(), signal.SIGTERM)
            return
        for pid in self._pids if kill.what == "all" else ():
            if pid != os.getpid():
                os.kill(pid, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def _end_if_due(self, trainer: TrainerState) -> None:
        last = self._orders.steps
        if last is None or trainer.progress.step < last:
            return
        if trainer.progress.step == last and self._seen:
            self._persist()
        self._end(trainer)
        raise SystemExit(0)

    def _end(self, trainer: TrainerState) -> None:
        unsaved = _unsaved_schedulers(trainer.optimizer, self._saved)
        self._write(end={"step": trainer.progress.step, "unsaved_schedulers": unsaved})

    def _write(self, **entry: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps(entry) + "\n")


def _unsaved_buffers(model: nn.Module) -> list[str]:
    saved = model.state_dict(keep_vars=True)
    return [name for name, _ in model.named_buffers() if name not in saved]


def _unsaved_schedulers(optimizer: torch.optim.Optimizer, saved: Collection[Any]) -> list[str]:
    """The classes of the optimizer's schedulers, where none of them is among what is saved."""
    # Not isinstance(), which asks every object for its __class__, and some are not prepared for that.
    found = [item for item in gc.get_objects() if issubclass(type(item), LRScheduler)]
    own = [item for item in found if getattr(item, "optimizer", None) is optimizer]
    if any(issubclass(type(item), LRScheduler) for item in saved):
        return []
    return sorted({type(item).__name__ for item in own})
