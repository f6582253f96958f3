"""Profiles some steps with torch's profiler."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, schedule

from minetorch.context import TrainerState
from minetorch.errors import ConfigurationError
from minetorch.plugins.monitoring import check_count

FOLDER = "profile"


class Profile:
    """Records some training iterations with `torch.profiler`, and puts the traces into the run's directory.

    ```python
    Trainer(..., plugins=[Profile(wait=10, warmup=2, active=5, ranks=[0, 1])])
    ```

    Each window of `wait`, `warmup` and `active` iterations gives `profile/rank_0_step_17.pt.trace.json.gz`, for
    chrome://tracing, https://ui.perfetto.dev and TensorBoard's profiler, and `profile/rank_0_step_17.txt`, with the
    operators that took most time. The run's directory may be on a remote storage. Recording slows the iterations of
    `warmup` and `active`; after the last window nothing is left of it. A run that goes on from a checkpoint profiles
    anew.
    """

    def __init__(
        self,
        *,
        wait: int = 10,
        warmup: int = 2,
        active: int = 5,
        repeat: int = 1,
        ranks: Collection[int] | None = (0,),
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
    ) -> None:
        """Plan the windows, from the first iteration of this start of the run.

        Args:
            wait: iterations before each window.
            warmup: iterations in which the profiler runs, but its overhead at the start is not recorded.
            active: iterations that are recorded.
            repeat: windows.
            ranks: which ranks record; None for all.
            record_shapes: record the shapes of the operators' inputs.
            profile_memory: record what each operator allocates.
            with_stack: record where in the source each operator was called.

        Raises:
            ConfigurationError: an argument is wrong.
        """
        for name, value, least in (
            ("wait", wait, 0),
            ("warmup", warmup, 0),
            ("active", active, 1),
            ("repeat", repeat, 1),
        ):
            check_count("Profile", name, value, least)
        self._iterations = (wait + warmup + active) * repeat
        self._ranks = ranks
        self._options: dict[str, Any] = {
            "schedule": schedule(wait=wait, warmup=warmup, active=active, repeat=repeat),
            "record_shapes": record_shapes,
            "profile_memory": profile_memory,
            "with_stack": with_stack,
        }
        self._profiler: Any = None

    def after_init(self, trainer: TrainerState) -> None:
        """Refuse ranks that there are not."""
        beyond = [rank for rank in self._ranks or () if rank not in range(trainer.world_size)]
        if beyond:
            raise ConfigurationError(
                f"Profile: ranks={list(self._ranks or ())} names ranks that are not there: this run has 0 to "
                f"{trainer.world_size - 1}."
            )

    def before_epoch_start(self, trainer: TrainerState) -> None:
        """Start, at the first epoch."""
        if self._profiler is not None or not self._iterations or not self._is_due(trainer):
            return
        activities = [ProfilerActivity.CPU]
        if trainer.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(
            activities=activities,
            on_trace_ready=lambda profiler: _write(trainer, profiler),
            acc_events=True,
            **self._options,
        )
        self._profiler.start()

    def after_train_iteration_end(self, trainer: TrainerState) -> None:
        """Go on to the next iteration, until all windows are over."""
        if self._profiler is None:
            return
        self._profiler.step()
        self._iterations -= 1
        if not self._iterations:
            self._stop()

    def before_quit(self, trainer: TrainerState) -> None:
        """Stop; a window that is not over gives what it has."""
        self._stop()

    def _is_due(self, trainer: TrainerState) -> bool:
        return self._ranks is None or trainer.rank in self._ranks

    def _stop(self) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()


def _write(trainer: TrainerState, profiler: Any) -> None:
    name = f"{FOLDER}/rank_{trainer.rank}_step_{trainer.progress.step}"
    by = "self_device_time_total" if trainer.device.type == "cuda" else "self_cpu_time_total"
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json.gz"
        profiler.export_chrome_trace(str(trace))
        trainer.files.upload(trace, f"{name}.pt.trace.json.gz")
    table = profiler.key_averages().table(sort_by=by, row_limit=30)
    trainer.files.write(f"{name}.txt", table.encode())
    trainer.logger.info("Profiled up to step %d: %s.pt.trace.json.gz", trainer.progress.step, name)
