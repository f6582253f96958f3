"""Shows how far the epoch is."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch

from minetorch.console.figures import Figures

if TYPE_CHECKING:
    from minetorch.console.bars import Display
    from minetorch.context import TrainerState
    from minetorch.training.loss_watch import LossWatch

_WINDOW = 8  # refreshes over which the rate is taken

T = TypeVar("T")


class _Mark(NamedTuple):
    """The counters at a refresh."""

    time: float
    iterations: int
    samples: int
    waited: float


class ProgressBar:
    """Shows the progress of each epoch. For rank 0 only.

    Between two refreshes an iteration costs three looks at the clock: the loss stays on its device, since fetching it
    makes a GPU wait. The loop itself calls `trained` and `validated`: as hooks they would cost several times as much.
    """

    def __init__(
        self,
        display: Display,
        clock: Callable[[], float] = time.perf_counter,
        memory: Callable[[torch.device], int | None] | None = None,
        watch: LossWatch | None = None,
    ) -> None:
        """Show on `display`, and tell `watch` of each loss that is shown.

        Args:
            display: where to show.
            clock: gives seconds.
            memory: gives the bytes in use by this process and its device.
            watch: warns of a loss that is not finite.
        """
        self._watch = watch
        self._display = display
        self._clock = clock
        self._memory = memory or memory_in_use
        self._due = float("-inf")
        self._validating = False
        self._waited = 0.0
        self._marks: deque[_Mark] = deque(maxlen=_WINDOW)
        self._epoch_began: float | None = None  # None: not seen from its beginning
        self._epoch_s: float | None = None  # how long a whole epoch takes, validation and all

    def watch(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; the time that they are waited for is measured."""
        clock, fetch = self._clock, iter(batches).__next__
        while True:
            asked = clock()
            try:
                batch = fetch()
            except StopIteration:
                return
            self._waited += clock() - asked
            yield batch

    def before_epoch_start(self, trainer: TrainerState) -> None:
        """Begin anew, also in the middle of an epoch."""
        self._begin(validating=False)
        now = self._clock()
        if self._epoch_began is not None:
            self._epoch_s = now - self._epoch_began
        self._epoch_began = None if trainer.progress.iteration else now

    def trained(self, trainer: TrainerState, index: int, loss: torch.Tensor) -> None:
        """Refresh after a training iteration if it is time."""
        now = self._clock()
        if now < self._due:
            return
        progress = trainer.progress
        self._refresh(trainer, now, index + 1, trainer.train_iterations, progress.samples_in_epoch, loss)

    def validated(self, trainer: TrainerState, index: int, loss: torch.Tensor) -> None:
        """The same after one of the validation."""
        now = self._clock()
        if now < self._due and self._validating:
            return
        if not self._validating:
            self._begin(validating=True)
        self._refresh(trainer, now, index + 1, trainer.val_iterations, 0, loss)

    def after_epoch_end(self, trainer: TrainerState) -> None:
        """Make room for the epoch's line."""
        self.close()

    def before_quit(self, trainer: TrainerState) -> None:
        """Leave a clean screen."""
        self.close()

    def close(self) -> None:
        """Take away what is shown."""
        try:
            self._display.end()
        except (OSError, ValueError):
            self._due = float("inf")

    def _begin(self, *, validating: bool) -> None:
        self.close()
        self._validating = validating
        self._marks.clear()
        if self._due != float("inf"):
            self._due = float("-inf")

    def _refresh(
        self, trainer: TrainerState, now: float, done: int, total: int | None, samples: int, loss: torch.Tensor
    ) -> None:
        # The first mark stands after an iteration, so that its warming up does not count in the rate.
        first = not self._marks
        self._marks.append(_Mark(now, done, samples, self._waited))
        if self._display.at_once or not first:
            value = loss.item()
            if self._watch is not None:
                which = "validation" if self._validating else "training"
                self._watch.look(value, step=trainer.progress.step, epoch=trainer.current_epoch, which=which)
            figures = self._figures(trainer, done, total, value)
            try:
                self._display.show(figures, trainer.logger)
            except (OSError, ValueError):
                # A console that has gone away is no reason to end a training.
                self._due = float("inf")
                return
        self._due = self._clock() + self._display.interval_s

    def _figures(self, trainer: TrainerState, done: int, total: int | None, loss: float) -> Figures:
        last = f"/{trainer.max_epochs}" if trainer.max_epochs else ""
        start, end = self._marks[0], self._marks[-1]
        seconds, iterations = end.time - start.time, end.iterations - start.iterations
        pace = seconds / iterations if iterations > 0 else None
        left_s = max(0, total - done) * pace if total is not None and pace is not None else None
        # The run counts training samples only; validation is shown in this rank's batches.
        count = iterations if self._validating else end.samples - start.samples
        return Figures(
            title=f"Epoch {trainer.current_epoch}{last}{' validation' if self._validating else ''}",
            done=done,
            total=total,
            loss=loss,
            rate=count / seconds if seconds > 0 else None,
            rate_unit="batches" if self._validating else "samples",
            waiting=min(1.0, (end.waited - start.waited) / seconds) if seconds > 0 else None,
            memory=self._memory(trainer.device),
            left_s=left_s,
            run_left_s=self._run_left_s(trainer, total, pace, left_s),
        )

    def _run_left_s(
        self, trainer: TrainerState, total: int | None, pace: float | None, left_s: float | None
    ) -> float | None:
        """The rest of this pass, and the epochs after this one, each as long as the last."""
        epochs = (trainer.max_epochs or 0) - trainer.current_epoch
        epoch_s = self._epoch_s
        if epoch_s is None and not self._validating and total is not None and pace is not None:
            epoch_s = total * pace  # as long as none has been seen as a whole: its training, at least
        if epochs <= 0 or left_s is None or epoch_s is None:
            return None
        return left_s + epochs * epoch_s


def memory_in_use(device: torch.device) -> int | None:
    """Bytes that tensors take on a GPU, or else that this process keeps resident; None where that cannot be known."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None
