"""Measures samples a second, and where the time of a step goes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from minetorch.context import TrainerState
from minetorch.data import Batch
from minetorch.log import on_console
from minetorch_launch.heartbeat import Phase

RATE_GRAPH = "samples_per_s"
PARTS_GRAPH = "step_time_ms"

DATA, COMPUTE, OPTIMIZER, HOOKS, SAVING, LOOP = PARTS = (
    "data", "forward+backward", "optimizer", "hooks", "saving", "loop"
)  # fmt: skip
_VALIDATION = "validation"


class Throughput:
    """Draws samples a second over all ranks and the parts of a step's time, and logs them at each epoch's end.

    ```python
    Trainer(..., plugins=[Throughput()])
    ```

    | part | what it is |
    | --- | --- |
    | data | waiting for a batch, and bringing it to the device |
    | forward+backward | up to the optimizer's step: the exchange of gradients and clipping, too |
    | optimizer | the optimizer's step |
    | hooks | hooks and plugins, this one included |
    | saving | how long saves hold up the training, not how long they take |
    | loop | the rest |

    A part is the mean over the ranks, in ms for each optimizer step since the last epoch's end, without validation. The
    rank that waits longest for data is named, if it stands out: the others' wait for it is in their backward. On a GPU,
    forward+backward and optimizer are the GPU's own time, by events that nobody waits for, and run beside the parts on
    the host; so they do not add up to the whole. `samples_per_s` is among the epoch's metrics.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Measure by a clock in seconds."""
        self._timeline = Timeline(clock)
        self._gpu: GpuTimes | None = None
        self._samples = self._steps = 0
        self._begun = False
        self._handles: list[Any] = []

    def after_init(self, trainer: TrainerState) -> None:
        """Watch the data, the optimizer and the phases from now on."""
        if trainer.device.type == "cuda":
            self._gpu = GpuTimes()
        trainer.train_dataloader.observe = self._observe
        trainer._heartbeat.listener = self._timeline.enter
        self._handles = [
            trainer.optimizer.register_step_pre_hook(lambda *_: self._turn_to(OPTIMIZER)),
            trainer.optimizer.register_step_post_hook(lambda *_: self._turn_to(LOOP)),
        ]
        self._begin(trainer)

    def before_epoch_start(self, trainer: TrainerState) -> None:
        """Begin anew, where `train` has only begun."""
        if not self._begun:
            self._begun = True
            self._begin(trainer)

    def after_epoch_end(self, trainer: TrainerState) -> None:
        """Log and draw the epoch's figures."""
        spent = self._timeline.take()
        seconds = sum(spent[part] for part in PARTS)
        if self._gpu is not None:
            spent |= self._gpu.take()
        steps = trainer.progress.step - self._steps
        of_ranks = trainer.world.gather([spent[part] * 1000 / steps for part in PARTS]) if steps else []
        if of_ranks:
            rate = trainer.world.broadcast((trainer.progress.samples - self._samples) / max(seconds, 1e-9))
            self._show(trainer, of_ranks, rate)
        self._begin(trainer)

    def before_quit(self, trainer: TrainerState) -> None:
        """Watch no more."""
        trainer.train_dataloader.observe = trainer._heartbeat.listener = None
        for handle in self._handles:
            handle.remove()

    def _show(self, trainer: TrainerState, of_ranks: list[list[float]], rate: float) -> None:
        mean = {
            part: sum(values) / len(of_ranks) for part, values in zip(PARTS, zip(*of_ranks, strict=True), strict=True)
        }
        trainer.metrics["samples_per_s"] = rate
        trainer.drawer.scalar(rate, RATE_GRAPH)
        trainer.drawer.scalars(mean, PARTS_GRAPH)
        parts = ", ".join(f"{part} {value:.3g}" for part, value in mean.items())
        short = ", ".join(f"{part} {value:.1f}" for part, value in mean.items())
        slowest = slowest_for_data([values[0] for values in of_ranks])
        shown = on_console(f"Step time in ms: {short}{slowest}")
        trainer.logger.info("Step time in ms: %s%s", parts, slowest, extra=shown)

    def _begin(self, trainer: TrainerState) -> None:
        self._samples, self._steps = trainer.progress.samples, trainer.progress.step
        self._timeline.take()

    def _observe(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        self._turn_to(DATA)
        for batch in batches:
            self._turn_to(COMPUTE)
            yield batch
            self._turn_to(DATA)

    def _turn_to(self, part: str) -> None:
        self._timeline.turn_to(part)
        if self._gpu is not None:
            self._gpu.turn_to(part)


class Timeline:
    """Adds up what a thread's time is spent on. The phases stand above the parts of the training itself."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()
        self._part = self._now = LOOP
        self._validating = False
        self._spent = dict.fromkeys([*PARTS, _VALIDATION], 0.0)

    def turn_to(self, part: str) -> None:
        """From here on, training is at another part."""
        self._part = part
        self._switch(part)

    def enter(self, phase: int) -> None:
        """From here on, the Trainer is in another phase."""
        if phase == Phase.VALIDATING:
            self._validating = True
        elif phase == Phase.TRAINING:
            self._validating = False
        if phase == Phase.SAVING:
            self._switch(SAVING)
        elif self._validating:
            self._switch(_VALIDATION)
        else:
            self._switch(HOOKS if phase == Phase.IN_HOOK else self._part)

    def take(self) -> dict[str, float]:
        """Seconds by part, since the last call."""
        self._switch(self._now)
        spent, self._spent = self._spent, dict.fromkeys(self._spent, 0.0)
        return spent

    def _switch(self, now: str) -> None:
        at = self._clock()
        self._spent[self._now] += at - self._since
        self._since, self._now = at, now


class GpuTimes:
    """Adds up how long the GPU takes for the forward and backward, and for the optimizer's step."""

    def __init__(self) -> None:
        self._marks: deque[tuple[str, torch.cuda.Event]] = deque()
        self._free: list[torch.cuda.Event] = []
        self._spent = {COMPUTE: 0.0, OPTIMIZER: 0.0}

    def turn_to(self, part: str) -> None:
        """From here on, what the GPU is given belongs to another part."""
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((part, event))
        self._add_up(wait=False)

    def take(self) -> dict[str, float]:
        """Seconds by part, since the last call; waits for the GPU."""
        if self._marks:
            self._marks[-1][1].synchronize()
        self._add_up(wait=True)
        spent, self._spent = self._spent, dict.fromkeys(self._spent, 0.0)
        return spent

    def _add_up(self, *, wait: bool) -> None:
        while len(self._marks) > 1 and (wait or self._marks[1][1].query()):
            part, start = self._marks.popleft()
            if part in self._spent:
                self._spent[part] += start.elapsed_time(self._marks[0][1]) / 1000
            self._free.append(start)


def slowest_for_data(waits: list[float]) -> str:
    """Names the rank that waits for data at least twice as long as the others' mean, and 1 ms; else nothing."""
    if len(waits) < 2:
        return ""
    rank = max(range(len(waits)), key=waits.__getitem__)
    others = (sum(waits) - waits[rank]) / (len(waits) - 1)
    return f" (data of rank {rank}: {waits[rank]:.3g})" if waits[rank] >= max(2 * others, others + 1) else ""
