"""Saves a run and restores it, on all ranks together."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from minetorch.checkpoint import Checkpoint, Checkpointer
from minetorch.checkpoint.manifest import Manifest
from minetorch.checkpoint.names import LATEST, epoch_alias
from minetorch.checkpoint.saver import Saved, Saver
from minetorch.context import TrainerState
from minetorch.data.randomness import generator_states
from minetorch.errors import ConfigurationError, RunVanishedError, StorageError, SupersededError
from minetorch.log import RunLog, on_console
from minetorch.resumption.broadcast import read_once
from minetorch.resumption.contents import Contents
from minetorch.resumption.history import Ended, Start
from minetorch.resumption.report import describe, look_back

CLAIM_TURN_S = 60.0
"""Seconds that rank 0 waits for another process at a time, before it tells the other ranks that it still waits."""


class Persistence:
    """Saves a run to its checkpoints and restores it, on all ranks together.

    Only rank 0 has a checkpointer and touches the storage. It broadcasts the state that it reads. Every rank raises
    its errors.
    """

    def __init__(
        self,
        trainer: TrainerState,
        checkpointer: Checkpointer | None,
        contents: Contents,
        log: RunLog,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trainer = trainer
        self._checkpointer = checkpointer
        self._clock = clock
        self._monotonic = monotonic
        self._contents = contents
        self._log = log
        self._saver: Saver | None = None
        self._resumed_from: str | None = None
        if checkpointer is not None:
            self._saver = Saver(checkpointer, before_commit=log.flush)

    def is_best(self) -> bool:
        """Whether the newest metrics are the best so far. Every rank calls it, and gets rank 0's answer."""
        return self._trainer.world.on_main(self._is_best)

    def _is_best(self) -> bool:
        metrics = self._trainer.metrics
        if self._trainer.settings.checkpoints.monitor not in metrics:
            return False
        assert self._checkpointer is not None
        return self._checkpointer.would_be_best(metrics)

    @property
    def best(self) -> Manifest | None:
        """The best checkpoint so far; None if there is none, and on ranks other than 0."""
        return None if self._checkpointer is None else self._checkpointer.best_manifest()

    def check_monitor(self) -> None:
        """Check that the finished epoch has the monitored metric. Every rank calls it.

        Raises:
            ConfigurationError: the metric is missing, and this epoch must have it.
        """
        self._trainer.world.on_main(self._check_monitor)

    def _check_monitor(self) -> None:
        trainer = self._trainer
        monitor, keep_best = trainer.settings.checkpoints.monitor, trainer.settings.checkpoints.keep_best
        # "val_loss" is the default: a run without validation has no best, and needs none.
        if trainer.lacks_metric(monitor) and not (monitor == "val_loss" and keep_best is None):
            advice = "give the Trainer a val_dataloader" if monitor == "val_loss" else "monitor another"
            raise ConfigurationError(
                f"monitor={monitor!r} is not among this epoch's metrics: {', '.join(map(repr, trainer.metrics))}. "
                f"Let a hook at 'after_epoch_end' set trainer.metrics[{monitor!r}], or {advice}."
            )

    def put_off(self) -> bool:
        """Whether a save is in progress. If so, `another_is_due` asks for one more after it. Every rank calls it."""

        def busy() -> bool:
            assert self._saver is not None
            self._saver.wants_another |= self._saver.is_busy
            return self._saver.is_busy

        return self._trainer.world.on_main(busy)

    def save(self, names: Sequence[str] = ()) -> str:
        """Start saving a checkpoint; `news` returns it when it is durable. Every rank calls it.

        Args:
            names: the user's names for the checkpoint.

        Returns:
            The checkpoint's path or URL.
        """
        world, progress = self._trainer.world, self._trainer.progress
        if self._saver is None:
            self._log.flush()  # the saver flushes rank 0's log before the commit, in its thread
        random = world.gather(generator_states())

        def start() -> str:
            assert self._saver is not None
            return self._saver.save(
                self._contents.gather() | {"random": random},
                curves=self._contents.curves(),
                names=names,
                step=progress.step,
                epoch=progress.epoch,
                epoch_complete=progress.epoch_complete,
                position=progress.iteration,
                world_size=world.size,
                metrics=self._trainer.metrics,
            )

        return world.on_main(start)

    def check_state(self) -> None:
        """Check that a checkpoint can hold the state, before hours of work depend on it. Every rank calls it.

        Raises:
            ConfigurationError: a checkpoint cannot hold it.
        """
        self._trainer.world.on_main(self._contents.check)

    @property
    def has_news(self) -> bool:
        """Whether `news` has a result or an error; always False on ranks other than 0."""
        saver = self._saver
        return saver is not None and (saver.has_news or self._broken is not None)

    def news(self, *, wait: bool = False) -> list[tuple[tuple[str, ...], str, int]]:
        """Names, path and step of each newly finished save. Every rank calls it.

        Args:
            wait: wait until all saves have finished.

        Raises:
            StorageError: a checkpoint could not be saved.
            SupersededError: another start of the run has taken it over.
        """

        def take() -> list[tuple[tuple[str, ...], str, int]]:
            assert self._saver is not None
            if self._broken is not None:
                raise self._broken
            if wait:
                self._saver.flush()
            saved = self._saver.take_news()
            for one in saved:
                self._log_saved(one)
            return [(one.names, one.path, one.manifest.step) for one in saved]

        return self._trainer.world.on_main(take)

    def another_is_due(self) -> bool:
        """Whether a save that was put off can be made now; true once per save, and only on rank 0."""
        if self._saver is None or not self._saver.wants_another or self._saver.is_busy:
            return False
        self._saver.wants_another = False
        return True

    def close(self) -> None:
        """Wait for all saves to finish. It logs errors and raises none, since the training is over."""
        if self._saver is None or self._checkpointer is None:
            return
        try:
            self._saver.close()
            for one in self._saver.take_news():
                self._log_saved(one)
        except (StorageError, SupersededError) as error:
            self._trainer.logger.error("A checkpoint could not be saved: %s", error)

    def release(self, how: Ended | None = None) -> None:
        """Release the run, so that its next start does not wait. Nothing is written after this.

        Args:
            how: how the training ended; None if there was no training.
        """
        if self._checkpointer is not None:
            try:
                self._checkpointer.fence.release(how or "")
            except StorageError as error:
                self._trainer.logger.warning("The run could not be marked as ended: %s", error)

    @property
    def _broken(self) -> SupersededError | RunVanishedError | None:
        return self._checkpointer.fence.broken if self._checkpointer is not None else None

    def _log_saved(self, saved: Saved) -> None:
        manifest = saved.manifest
        where = epoch_alias(manifest.epoch)
        if not manifest.epoch_complete:
            where = f"epoch {manifest.epoch}, iteration {manifest.position}"
        also = sorted(alias for alias, name in manifest.aliases.items() if name == manifest.name and alias != LATEST)
        names = ", ".join([where, *also])
        short = on_console(f"Saved step {manifest.step} ({names})")
        self._trainer.logger.info("Saved models/%s (%s)", manifest.payload, names, extra=short)

    def claim(self) -> int:
        """Become the run's only writer, before anything of the run is written. Every rank calls it.

        Rank 0 waits for another process in turns of `CLAIM_TURN_S`, since a longer wait would exceed the timeout of
        the other ranks' collective.

        Returns:
            The generation: the number of this start of the run.

        Raises:
            CheckpointError: the run does not have the checkpoint to resume from; nothing was written.
            RunInUseError: another process is training this run.
            StorageError: the storage could not be listed, read or written.
        """
        settings = self._trainer.settings

        def claim() -> int:
            assert self._checkpointer is not None
            if settings.if_running != "wait":  # the process that it waits for may still save the checkpoint
                self._checkpointer.check(settings.resume)
            claimed = self._checkpointer.claim(settings.if_running, patience_s=CLAIM_TURN_S)
            if claimed:
                self._watch()
            return self._checkpointer.fence.generation

        while not (generation := self._trainer.world.on_main(claim)):
            pass
        return generation

    def renew(self) -> None:
        """Claim the run again, if it was released. Every rank calls it.

        Raises:
            SupersededError: another start has claimed the run since.
            StorageError: the storage could not be read or written.
        """

        def renew() -> None:
            assert self._checkpointer is not None
            self._checkpointer.renew()
            self._watch()

        self._trainer.world.on_main(renew)

    def _watch(self) -> None:
        """Start the thread that keeps the claim alive. It holds no reference to the Trainer."""
        assert self._checkpointer is not None
        assert self._saver is not None
        self._checkpointer.fence.watch([self._saver.close, *self._trainer.drawer.closers(), self._log.close])

    def origin(self) -> tuple[int, str | None]:
        """The number of this start of the run, from 1, and the path of the checkpoint that it resumed from, if any.

        Every rank calls it, after `restore`.
        """
        generation = self._checkpointer.fence.generation if self._checkpointer is not None else 0
        return self._trainer.world.broadcast(generation), self._resumed_from

    def restore(self, resume: bool | str | int) -> None:
        """Find the checkpoint that `resume` names, read it once, and restore its state on every rank.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint.
            CheckpointCorruptError: there are checkpoints, but all are damaged.
            CheckpointMismatchError: the checkpoint is of another model.
            StorageError: the storage could not be listed or read.
        """
        world, began = self._trainer.world, self._monotonic()
        found: Checkpoint | None = None

        def read() -> dict[str, Any] | None:
            nonlocal found
            assert self._checkpointer is not None
            found = self._checkpointer.open(resume)
            return found.state if found is not None else None

        state = read_once(read, self._trainer.strategy.weights, world)
        if state is not None:
            path: str = world.broadcast(found.path if found is not None else "")
            self._contents.take_over(state, path)
            self._resumed_from = path
        self._contents.history.add(world.on_main(lambda: self._begin(found, resume, self._monotonic() - began)))

    def _begin(self, found: Checkpoint | None, resume: bool | str | int, load_s: float) -> list[Start]:
        """Record this start, and log the resume report. Returns the starts that the checkpoint does not know."""
        assert self._checkpointer is not None
        progress, fence, now = self._trainer.progress, self._checkpointer.fence, self._clock()
        manifest, path = (found.manifest, found.path) if found is not None else (None, None)
        from_elsewhere = path is not None and (manifest is None or path != self._checkpointer.path_of(manifest))
        claims = fence.earlier(manifest.generation if manifest is not None and not from_elsewhere else 1)
        past = look_back(claims, self._checkpointer.manifests, os.environ)
        is_sequel = resume is not False and not from_elsewhere
        start = Start(
            time=now,
            host=socket.gethostname(),
            world_size=self._trainer.world_size,
            generation=fence.generation,
            checkpoint=manifest.payload if manifest is not None and not from_elsewhere else path,
            epoch=progress.epoch,
            step=progress.step,
            steps_lost=past.steps_lost(progress.step) if is_sequel else None,
            down_s=None if past.seen is None else max(0.0, now - past.seen),
            load_s=load_s,
            ended=past.ended,
        )
        self._say(start, found, describe(start, past) if is_sequel else f"loaded in {load_s:.2f} s", resume)
        try:
            fence.begin(asdict(start), lambda: progress.step)
        except StorageError as error:
            self._trainer.logger.warning("This start of the run could not be written down: %s", error)
        if from_elsewhere:
            return [start]
        known = max((known.generation for known in self._contents.history.starts), default=0)
        between = (Start.from_dict(claim.start or {}) for claim in claims if claim.generation > known)
        return [*filter(None, between), start]

    def _say(self, start: Start, found: Checkpoint | None, cost: str, resume: bool | str | int) -> None:
        progress, logger = self._trainer.progress, self._trainer.logger
        if found is not None:
            where = "" if progress.epoch_complete else f", iteration {progress.iteration}"
            logger.info("Resumed from %s: epoch %d%s, step %d.", found.path, start.epoch, where, start.step)
            logger.info("Resume report: %s.", cost)
        elif resume is True:
            logger.info(
                "No checkpoint found: training from scratch%s.", f"; {cost}" if start.steps_lost or start.ended else ""
            )
