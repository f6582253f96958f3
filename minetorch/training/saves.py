"""Decides when all ranks save: at a request, at a stride, or at the end. Calls the hooks for finished saves."""

from __future__ import annotations

from collections.abc import Sequence

from minetorch.context import TrainerState
from minetorch.distributed.stop_vote import NOTHING, Request, StopVote
from minetorch.hooks import Hooks
from minetorch.resumption.persistence import Persistence
from minetorch.strategies.replicas import Replicas
from minetorch.training.losses import TrainingLoss
from minetorch.training.step import TrainStep
from minetorch_launch.heartbeat import HeartbeatWriter, Phase


class Saves:
    """Saves the run when a save is due or a rank asks for one. All ranks save after the same step."""

    def __init__(
        self,
        trainer: TrainerState,
        *,
        step: TrainStep,
        losses: TrainingLoss,
        hooks: Hooks,
        stop_vote: StopVote,
        persistence: Persistence,
        replicas: Replicas,
        heartbeat: HeartbeatWriter,
    ) -> None:
        self._trainer = trainer
        self._step = step
        self._losses = losses
        self._hooks = hooks
        self._stop_vote = stop_vote
        self._persistence = persistence
        self._replicas = replicas
        self._heartbeat = heartbeat
        self._after_step: list[tuple[tuple[str, ...], bool]] = []
        """Names and `wait` of the saves that wait for the end of an accumulation."""

    def save(self, names: Sequence[str] = ()) -> str:
        """Copy the state, and start to save the copy. Every rank calls it.

        Returns:
            The checkpoint's path or URL.

        Raises:
            RanksDifferError: the ranks do not have the same weights.
            StorageError: the previous save failed.
        """
        trainer = self._trainer
        names = (*names, *trainer._names_of_next_save)
        trainer._names_of_next_save.clear()
        self._hooks.call("before_checkpoint_persisted", names=names)
        self._losses.sum_up()
        before = self._heartbeat.enter(Phase.SAVING)
        self._replicas.check()
        path = self._persistence.save(names)
        self._heartbeat.enter(before)
        return path

    def persist(self, names: tuple[str, ...], *, wait: bool) -> str | None:
        """Save now or, in the middle of an accumulation, after its step; see `Trainer.persist`."""
        if self._step.is_open:
            # Checkpoints hold no gradients: a run resumed from here would lose those so far.
            self._after_step.append((names, wait))
            return None
        path = self.save(names)
        if wait:
            self.poll(wait=True)
        return path

    def after_step(self) -> frozenset[Request]:
        """Save if a save is due. Returns the requests of all ranks to the loop. Every rank calls it after each step."""
        if self._after_step:
            for names, wait in self._after_step:
                self.persist(names, wait=wait)
            self._after_step.clear()
        self._ask_for_news()
        asked, every = self._stop_vote.at_step(), self._trainer.settings.checkpoints.every_steps
        due = every is not None and self._trainer.progress.step % every == 0
        if not (asked or due):
            return NOTHING
        if "poll_saves" in asked:
            self.poll()
        due = due or "save" in asked
        if "save_and_stop" in asked or (due and not self._is_put_off()):
            self.save()
        return asked - {"save", "poll_saves"}

    def asked(self) -> frozenset[Request]:
        """The requests of all ranks so far, without polls, which it carries out. Every rank calls it."""
        self._ask_for_news()
        asked = self._stop_vote.now()
        if "poll_saves" in asked:
            self.poll()
        return asked - {"poll_saves"}

    def at_epoch_end(self, *, must: bool) -> None:
        """Save at the stride, at the best metric so far, and if `must`. Every rank calls it.

        Raises:
            ConfigurationError: this run has no metric `monitor`. The save continues all the same.
        """
        stride = self._trainer.settings.persist_stride
        due = stride is not None and self._trainer.current_epoch % stride == 0
        if must or due or self._persistence.is_best():
            self.save()
        self._persistence.check_monitor()

    def poll(self, *, wait: bool = False) -> None:
        """Call the hooks for the checkpoints that have become durable. Every rank calls it.

        Args:
            wait: wait until all saves have finished.

        Raises:
            StorageError: a save failed. Every rank raises it.
        """
        before = self._heartbeat.enter(Phase.SAVING) if wait else None
        news = self._persistence.news(wait=wait)
        if before is not None:
            self._heartbeat.enter(before)
        for names, path, step in news:
            self._heartbeat.saved(step)
            self._hooks.call("after_checkpoint_persisted", names=names, path=path)

    def _ask_for_news(self) -> None:
        if self._persistence.has_news:
            self._stop_vote.ask("poll_saves")
        if self._persistence.another_is_due():
            self._stop_vote.ask("save")

    def _is_put_off(self) -> bool:
        return self._trainer.settings.checkpoints.when_busy == "coalesce" and self._persistence.put_off()
