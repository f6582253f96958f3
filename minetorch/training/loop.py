"""The training loop: epochs, iterations, steps, validations, and the hooks between them."""

from __future__ import annotations

from functools import partial
from itertools import repeat

from minetorch.console.progress_bar import ProgressBar
from minetorch.context import TrainerState
from minetorch.data import Batch, Comparison, Epoch, mark_last
from minetorch.distributed.stop_vote import NOTHING, Request
from minetorch.hooks import Hooks
from minetorch.resumption.contents import Contents
from minetorch.resumption.report import log_data
from minetorch.training.loss_watch import LossWatch
from minetorch.training.losses import TrainingLoss
from minetorch.training.modes import Modes
from minetorch.training.saves import Saves
from minetorch.training.step import TrainStep
from minetorch.training.summary import Batches, starting
from minetorch.training.trial import limited, trial_length
from minetorch.training.validation import Validation
from minetorch_launch.heartbeat import HeartbeatWriter


class Loop:
    """Trains epoch after epoch, until the last one or a stop. The docstring of `Trainer` shows the order of events."""

    def __init__(
        self,
        trainer: TrainerState,
        *,
        step: TrainStep,
        losses: TrainingLoss,
        validation: Validation,
        saves: Saves,
        hooks: Hooks,
        modes: Modes,
        contents: Contents,
        comparison: Comparison,
        watch: LossWatch,
        bar: ProgressBar | None,
        heartbeat: HeartbeatWriter,
    ) -> None:
        self._trainer = trainer
        self._step = step
        self._losses = losses
        self._validation = validation
        self._saves = saves
        self._hooks = hooks
        self._modes = modes
        self._contents = contents
        self._comparison = comparison
        self._watch = watch
        self._bar = bar
        self._heartbeat = heartbeat

    @property
    def is_at_end(self) -> bool:
        """Whether the last epoch is done."""
        last, progress = self._trainer.max_epochs, self._trainer.progress
        return last is not None and progress.epoch_complete and progress.epoch >= last

    def run(self) -> None:
        """Train until the last epoch, or until stopped. Every rank calls it."""
        trainer, logger = self._trainer, self._trainer.logger
        if self.is_at_end:
            logger.info("All %d epochs are done. Raise max_epochs to continue.", trainer.current_epoch)
        elif trainer.progress.epoch_complete and self._is_stopped_before_epoch():
            logger.info("Stopped before epoch %d, as asked.", trainer.current_epoch + 1)
            return
        else:
            self._log_start()
        while not self.is_at_end:
            self._begin_epoch()
            asked = self._train_epoch()
            self._modes.evaluate()
            if "save_and_stop" in asked or not self._finish_epoch():
                iteration = trainer.progress.iteration
                logger.info("Stopped in epoch %d after iteration %d, as asked.", trainer.current_epoch, iteration)
                return
            if self._save_epoch(asked):
                logger.info("Stopped after epoch %d, as asked.", trainer.current_epoch)
                return

    def _log_start(self) -> None:
        trainer, loader = self._trainer, self._trainer.train_dataloader
        devices = trainer.world.gather(trainer.world.device_name)
        if trainer.is_main:
            batches = Batches(trial_length(loader.iterations, trainer.settings), loader.global_batch_size)
            summary = starting(trainer.unwrapped_model, trainer.settings, batches, devices, trainer.files.url)
            trainer.logger.info("%s", summary)

    def _is_stopped_before_epoch(self) -> bool:
        """Save if a hook at `after_init` has asked for it. Returns whether a hook has asked to stop."""
        asked = self._saves.asked()
        if asked & {"save_and_stop", "save"}:
            self._saves.save()
        return bool(asked & {"save_and_stop", "stop_after_epoch"})

    def _begin_epoch(self) -> None:
        """Start the next epoch, or continue the one that a checkpoint was saved in.

        The random generators get the checkpoint's states back. Hooks that run at the start of a Trainer may have drawn
        random numbers, and an uninterrupted run does not run these hooks here.
        """
        progress = self._trainer.progress
        if progress.epoch_complete:
            self._contents.let_generators_go()
        progress.start_epoch()
        self._losses.take_up()
        self._step.reset()
        self._heartbeat.epoch(progress.epoch)
        self._modes.train()
        self._hooks.call("before_epoch_start", epoch=progress.epoch)
        self._contents.let_generators_go()

    def _train_epoch(self) -> frozenset[Request]:
        """Train on this rank's share of the epoch's data. Returns the requests of all ranks.

        A stop saves first and ends the loader's workers later: that takes seconds, and a scheduler may kill the process
        before.
        """
        trainer, step, asked = self._trainer, self._step, NOTHING
        trainer.strategy.start_epoch()
        epoch = limited(self._open_epoch(), trainer.settings, done=trainer.progress.iteration)
        trainer.train_iterations = None if epoch.iterations is None else trainer.progress.iteration + epoch.iterations
        batches = epoch.batches if self._bar is None else self._bar.watch(epoch.batches)
        # To mark the last batch, `mark_last` fetches one batch ahead. Only an accumulation needs the mark.
        accumulates = trainer.settings.accumulated_iter > 1
        for batch, is_last in mark_last(batches) if accumulates else zip(batches, repeat(True), strict=False):
            self._iterate(batch, is_last=is_last)
            if step.is_due and (after := self._saves.after_step()):
                asked |= after
                if "save_and_stop" in asked:
                    return asked
        asked |= self._saves.asked()
        if "save_and_stop" in asked:
            self._saves.save()
        return asked

    def _open_epoch(self) -> Epoch:
        """Open the epoch's data. In the middle of an epoch, open the rest, and log whether the data has changed."""
        trainer, progress = self._trainer, self._trainer.progress
        open_epoch = partial(self._comparison.epoch, "train_dataloader", trainer.train_dataloader, progress.epoch)
        epoch = open_epoch(progress.position, progress.stream)
        if progress.iteration:
            differences = [] if progress.data is None else epoch.data.differences(progress.data)
            if differences:
                # With another batch sampler, a position in batches means nothing. A number of samples does.
                epoch = open_epoch(stream=progress.stream, after_samples=progress.samples_in_epoch)
            if trainer.is_main:
                log_data(trainer.logger, progress, epoch, differences, is_recorded=progress.data is not None)
        progress.position, progress.data = epoch.start, epoch.data.to_plain()
        return epoch

    def _iterate(self, batch: Batch, *, is_last: bool) -> None:
        """Compute a batch's gradients, and take the optimizer's step if it is due."""
        trainer, progress, hooks, step = self._trainer, self._trainer.progress, self._hooks, self._step
        index = progress.iteration
        trainer.batch = batch
        step.begin(is_last=is_last)
        if hooks.any_at("before_train_iteration_start"):
            hooks.call("before_train_iteration_start", index=index, data=batch.data)
        loss = step.add_gradients(batch, progress.epoch)
        progress.count(batch)
        if step.is_due:
            step.take()
            progress.step += 1
        self._heartbeat.iteration(progress.step)
        if self._bar is not None:
            self._bar.trained(trainer, index, loss)
        if hooks.any_at("after_train_iteration_end"):
            hooks.call("after_train_iteration_end", index=index, data=batch.data, loss=loss)

    def _finish_epoch(self) -> bool:
        """Validate if it is due, and end the epoch.

        Returns:
            False if a stop has interrupted the validation. Then the checkpoint has the state before the validation,
            and the next start of the run repeats the validation.
        """
        trainer, train_loss, val_loss = self._trainer, self._losses.mean(), None
        if trainer.val_dataloader is not None and trainer.current_epoch % trainer.settings.eval_stride == 0:
            val_loss, is_cut_short = self._validation.run()
            if is_cut_short:
                self._saves.save()
                return False
        self._end_epoch(train_loss, val_loss)
        return True

    def _end_epoch(self, train_loss: float, val_loss: float | None) -> None:
        trainer, progress = self._trainer, self._trainer.progress
        progress.epoch_complete = True
        trainer.metrics = {"train_loss": train_loss}
        trainer.lowest_train_loss = min(trainer.lowest_train_loss, train_loss)
        if val_loss is not None:
            trainer.metrics["val_loss"] = val_loss
            trainer.lowest_val_loss = min(trainer.lowest_val_loss, val_loss)
            if trainer.is_main:
                self._watch.look(val_loss, step=progress.step, epoch=progress.epoch, which="validation")
        self._hooks.call("after_epoch_end", epoch=progress.epoch, train_loss=train_loss, val_loss=val_loss)
        trainer.drawer.flush()

    def _save_epoch(self, asked: frozenset[Request]) -> bool:
        """Save the epoch's checkpoint if it is due or a rank has asked for it. Returns whether the run stops here."""
        asked |= self._saves.asked()
        stops = bool(asked & {"save_and_stop", "stop_after_epoch"})
        self._saves.at_epoch_end(must=stops or self.is_at_end or "save" in asked)
        return stops
