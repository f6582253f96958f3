"""The training loop and its order of events."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from torch import nn
from torch.utils.data import DataLoader

from minetorch import arguments
from minetorch.backend import Backend, placement
from minetorch.bars import Display, ViewDisplay, make_display
from minetorch.checkpoint import Checkpointer, Store
from minetorch.checkpoint.fence import Fence, FencedStore
from minetorch.checkpoint.permit import check_folders
from minetorch.contents import REQUIRED_KEYS, Contents
from minetorch.data import Batch, Comparison, Epoch, RankLoader, mark_last, share_out, share_out_by_shards
from minetorch.data.order import derive_seed
from minetorch.data.stream import StreamPosition
from minetorch.deadline import JobEnd
from minetorch.drawers import Drawer, make_drawers
from minetorch.elastic import Exact, check_exact
from minetorch.errors import ConfigurationError, StoppedEarly
from minetorch.facts import facts_of
from minetorch.history import Ended, History
from minetorch.hooks import Hooks
from minetorch.inline import NOTEBOOK_VARIABLE, ShownStore, find_view
from minetorch.log import LOGGING_FORMAT, RunLog
from minetorch.notices import NOTICES, describe
from minetorch.persistence import Persistence
from minetorch.plugins.drawing import DrawLosses
from minetorch.plugins.epoch_log import EpochLog
from minetorch.plugins.inline_epochs import InlineEpochs
from minetorch.plugins.loss_watch import LossWatch
from minetorch.plugins.progress_bar import ProgressBar
from minetorch.plugins.saving import SaveByTime
from minetorch.plugins.stopping import StopByTime
from minetorch.progress import Progress
from minetorch.randomness import generator_states, restore_generators, seed_generators
from minetorch.receipt import log_data
from minetorch.settings import Settings
from minetorch.state import TrainerState
from minetorch.stateful import Stateful
from minetorch.stop_vote import NOTHING, Request, StopVote
from minetorch.training.modes import Modes
from minetorch.training.replicas import Replicas
from minetorch.world import World
from minetorch_launch.heartbeat import HeartbeatWriter, Phase

if TYPE_CHECKING:
    from minetorch.plugins.ledger import KeepLedger
    from minetorch.prove.orders import Orders

TRIVIAL_ITERATIONS = 10
"""Iterations of a pass over the data under `trival=True`."""


class Trainer(TrainerState):
    """Trains a model, and goes on from its last checkpoint when it is started again.

    The order of events, with the hook points in it:

    ```
    after_init
    for each epoch up to max_epochs:
        before_epoch_start
        for each batch of this rank's share of the training data:
            before_train_iteration_start
            loss_func(trainer, data), backward
            every accumulated_iter batches: clip, optimizer step
            after_train_iteration_end
            after a step: the saves and stops that were asked for, and after_checkpoint_persisted for each checkpoint
                that has become durable (after an epoch, too)
        put the model into eval mode, until the next epoch
        every eval_stride epochs, for each batch of this rank's share of the validation data:
            before_val_iteration_start
            loss_func(trainer, data)
            after_val_iteration_end
        the losses of all ranks: into metrics, drawn
        after_epoch_end
        every persist_stride epochs, at the best, and at the last: before_checkpoint_persisted, and start to save
    when all is saved: after_checkpoint_persisted
    before_quit
    ```
    """

    def __init__(
        self,
        alchemistic_directory: str | os.PathLike[str],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        train_dataloader: DataLoader[Any],
        loss_func: Callable[..., torch.Tensor],
        val_dataloader: DataLoader[Any] | None = None,
        *,
        code: str = "default",
        resume: bool | str | int = True,
        optimizer_options: Literal["checkpoint", "script"] = "checkpoint",
        eval_stride: int = 1,
        persist_stride: int | None = 1,
        persist_steps: int | None = None,
        persist_minutes: float | None = None,
        persist_policy: Literal["wait", "coalesce"] = "wait",
        keep_last: int | None = None,
        keep_best: int | None = None,
        keep_every: int | None = None,
        keep_every_steps: int | None = None,
        monitor: str = "val_loss",
        mode: Literal["min", "max"] = "min",
        drawer: str | Drawer | Sequence[str | Drawer] | None = "matplotlib",
        hooks: Mapping[str, Any] | None = None,
        plugins: Iterable[Any] = (),
        statable: Mapping[str, Stateful] | None = None,
        max_epochs: int | None = None,
        max_time: float | timedelta | None = None,
        logging_format: str = LOGGING_FORMAT,
        trival: bool = False,
        trivial: bool | None = None,
        in_notebook: bool = False,
        accumulated_iter: int = 1,
        amp: Literal[False, "bf16", "fp16"] = False,
        clip_grad_norm: float | None = None,
        seed: int = 0,
        split_batches: bool = False,
        elastic: Literal[False, "exact"] = False,
        virtual_shards: int = 8,
        find_unused_parameters: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        if_running: Literal["refuse", "wait", "replace"] = "refuse",
        ledger: bool = False,
        **unknown: NoReturn,
    ) -> None:
        """Join the other workers, place the model, and resume.

        Args:
            alchemistic_directory: path or fsspec URL (`s3://bucket/runs`) below which all runs are kept.
            model: the user's model, on any device; it is moved to this worker's.
            optimizer: of the model's parameters.
            train_dataloader: a DataLoader over all of the data, the same on every rank; the Trainer shares the data
                out over the ranks. A subclass that overrides how it iterates is refused.
            loss_func: called as `loss_func(trainer, data)`, or by name where its two parameters are named
                `data` and `trainer`; calls `trainer.model`, and returns a scalar tensor, the mean over the batch's
                samples.
            val_dataloader: as `train_dataloader`; None to leave out validation.
            code: name of the run; its files are at `{alchemistic_directory}/{code}/`.
            resume: True: from the newest checkpoint that verifies, if there is any. False: from scratch. Or the
                checkpoint to take: an epoch's number, "latest", "best", "epoch_3", a file's name, an absolute
                path or a URL.
            optimizer_options: whose learning rate, weight decay and so on a resumed run uses where the script gives
                others than before: the "checkpoint"'s, or the "script"'s. See docs/resuming.md.
            eval_stride: validate every so many epochs.
            persist_stride: save every so many epochs, and at the last; None: at the last only.
            persist_steps: save every so many optimizer steps, too.
            persist_minutes: save after so many minutes, too.
            persist_policy: what a save by steps or minutes does that comes while one is under way: "wait" for it, or
                "coalesce": one save, made when that one is done, stands for all that came meanwhile.
            keep_last: keep this many of the newest checkpoints.
            keep_best: keep this many of the best checkpoints.
            keep_every: keep the end of every so many epochs for ever.
            keep_every_steps: keep what was saved after a multiple of so many optimizer steps for ever.
            monitor: the metric that says which checkpoint is best.
            mode: "min" or "max": which value of `monitor` is best.
            drawer: "matplotlib", "tensorboard", a `Drawer`, a list of these, or None.
            hooks: a function or a list of functions for each hook point.
            plugins: objects whose methods are named as hook points; their state is in the checkpoint if
                they have `state_dict` and `load_state_dict`.
            statable: named objects to keep in the checkpoint, such as an LR scheduler.
            max_epochs: the last epoch; None: until stopped.
            max_time: seconds (or a timedelta) after which to save and stop.
            logging_format: of a log line, as in the standard library's `logging`.
            trival: stop every pass over the data after 10 iterations.
            trivial: the same as `trival`.
            in_notebook: show output as a notebook can; so do workers of `minetorch.notebook.launch` in any case.
            accumulated_iter: iterations whose gradients make one optimizer step.
            amp: False, "bf16" or "fp16": mixed precision of the model's forward.
            clip_grad_norm: upper limit of the gradients' total 2-norm at each step.
            seed: what the data's order and every random generator derive from.
            split_batches: the loaders' `batch_size` is that of all workers together, not that of each.
            elastic: "exact": every bit of the weights, the losses and the curves is the same at any number of workers,
                also where that changes in the middle of the run; it needs `split_batches=True`. See docs/elastic.md.
            virtual_shards: with `elastic`, into how many parts each batch is split, for the whole of the run; there
                can be as many workers.
            find_unused_parameters: with several workers, look in every step for the parameters that the loss does not
                depend on; else there must be none.
            storage_options: passed on to fsspec.
            if_running: where another process is training this run: "refuse" with an error, "wait" until it ends, or
                "replace": take the run over, and the other stops.
            ledger: write down which samples each step has trained on, for `minetorch.ledger` to read.
            unknown: none is allowed; the error says what to give in its place.

        Raises:
            ConfigurationError: an argument is wrong; nothing was written.
            CheckpointError: `resume` names no checkpoint, or one that cannot be used.
            StorageError: the storage cannot be used.
            StoppedEarly: a signal asked the process to end, as in `train`.
        """
        arguments.refuse_unknown(unknown, Trainer.__init__)
        self._heartbeat = HeartbeatWriter.from_environ(os.environ)
        self._heartbeat.begin()
        self.settings = Settings(
            code=code,
            resume=resume,
            optimizer_options=optimizer_options,
            eval_stride=eval_stride,
            persist_stride=persist_stride,
            persist_steps=persist_steps,
            persist_minutes=persist_minutes,
            persist_policy=persist_policy,
            keep_last=keep_last,
            keep_best=keep_best,
            keep_every=keep_every,
            keep_every_steps=keep_every_steps,
            monitor=monitor,
            mode=mode,
            max_epochs=max_epochs,
            max_time=max_time,
            logging_format=logging_format,
            trival=arguments.either(trival, trivial),
            in_notebook=True if in_notebook is False and NOTEBOOK_VARIABLE in os.environ else in_notebook,
            accumulated_iter=accumulated_iter,
            amp=amp,
            clip_grad_norm=clip_grad_norm,
            seed=seed,
            split_batches=split_batches,
            elastic=elastic,
            virtual_shards=virtual_shards,
            find_unused_parameters=find_unused_parameters,
            if_running=if_running,
            ledger=ledger,
        )
        arguments.check_place(alchemistic_directory, storage_options)
        self._proof = self._proof_orders()
        if self._proof is not None:
            self.settings = self._proof.settings(self.settings)
            alchemistic_directory, storage_options = self._proof.directory(alchemistic_directory), None
        arguments.check_objects(model, optimizer, train_dataloader, val_dataloader)
        self._loss_func = arguments.loss_caller(loss_func)
        self.optimizer = optimizer
        self.progress = Progress()
        self.metrics = {}
        self.lowest_train_loss = self.lowest_val_loss = float("inf")
        self.batch = None
        self.around_validation = []
        self._names_of_next_save = []
        self.world = World.from_environ(os.environ)
        if elastic:
            check_exact(self.settings, self.world, model, optimizer)
        self._exact: Exact | None = None
        self._job_end = JobEnd.from_environ(os.environ)
        self._stop_vote = StopVote(self.world, must_stop=self._must_stop)
        self._loss_sum = self._zero()
        self._stream: StreamPosition | None = None
        self._accumulating = False
        self._persist_later: list[tuple[tuple[str, ...], bool]] = []
        self._view = find_view(os.environ) if self.in_notebook and self.is_main else None
        plugins, hooks = arguments.check_plugins(plugins), arguments.check_hooks(hooks)
        arguments.check_monitor(self.settings, val_dataloader, hooks, plugins)
        states = arguments.check_statable(statable), arguments.stateful_plugins(plugins)
        self._store = store = Store.open(alchemistic_directory, storage_options).child(*code.split("/"))
        # The log's file waits for the claim: until then the run may be another process's.
        self._log = RunLog(
            store,
            rank=self.rank,
            world_size=self.world_size,
            logging_format=logging_format,
            in_notebook=self.in_notebook,
            view=self._view,
            held=True,
        )
        self.logger = self._log.logger
        self._loss_watch = LossWatch(self.logger)
        self._ledger = self._keep_ledger(store) if self.settings.ledger else None
        self._hooks = self._gather_hooks(plugins, hooks)
        if self._proof is not None:
            self._hooks.add_plugin(
                self._recorder(self._proof, [member for group in states for member in group.values()])
            )
        checkpointer = self._checkpointer(store.child("models")) if self.is_main else None
        self.files = store if checkpointer is None else self._fenced(store, checkpointer.fence)
        self.drawer = make_drawers(
            drawer,
            store=self.files,
            code=code,
            current_x=lambda: self.current_epoch,
            logger=self.logger,
            silent=not self.is_main,
        )
        self._share_out(train_dataloader, val_dataloader)
        self._comparison = Comparison(self.world, self.logger)
        self._contents = Contents(self, *states)
        self._persistence = Persistence(self, checkpointer, self._contents, self._log)
        self._in_loop = False
        self._ended: Ended | None = None
        check_folders(store)
        # Up to here nothing was written, and no other worker was waited for.
        self.world.connect(say=self.logger.warning)
        try:
            self._comparison.traits({"train_dataloader": self.train_dataloader, "val_dataloader": self.val_dataloader})
            self.backend = Backend(
                self.world,
                model,
                optimizer,
                amp,
                exchanges=not elastic,
                find_unused_parameters=find_unused_parameters,
            )
            self._modes = Modes(model, lambda: self.model, self.logger)
            self._replicas = Replicas(self.world, model, optimizer, self.logger)
            if elastic:
                self._exact = Exact(self.world, self.backend, shards=virtual_shards, seed=seed)
            seed_generators(derive_seed(seed, "rank", 0 if elastic else self.rank))
            fence = Fence(store.child("models"), logger=self.logger) if checkpointer is None else checkpointer.fence
            fence.follow(self._persistence.claim())
            # Once this Trainer is garbage, its thread ends all others and releases the run.
            weakref.finalize(self, fence.abandon).atexit = False
            # Not before: a signal that comes while ranks wait for one another, or for another run, must end those
            # that wait. Nor after: between here and train() there is nothing to save, and it does what it always does.
            with NOTICES.noted():
                try:
                    self._persistence.restore(self.settings.resume)
                finally:
                    self._log.begin(guard=fence.check)
                if checkpointer is not None:
                    options = self.backend.optimizer_state.options
                    checkpointer.settings = facts_of(self.settings, model, optimizer, options, train_dataloader)
                self._take_up_epoch()
                self._heartbeat.resumed(self.progress.step, self.progress.epoch, saved=self.progress.epoch > 0)
                self._hooks.call("after_init")
                self._persistence.check_state()
                if self._is_noticed():
                    raise StoppedEarly
        except BaseException:
            self.close()
            raise

    def _gather_hooks(self, plugins: Iterable[Any], hooks: Mapping[str, Any]) -> Hooks:
        settings, gathered = self.settings, Hooks(self, self._heartbeat)
        self._progress_bar: ProgressBar | None = None
        built_in: list[Any] = [DrawLosses()]
        if self.is_main:
            display: Display | None = ViewDisplay(self._view) if self._view is not None else None
            display = display or make_display(os.environ, in_notebook=settings.in_notebook)
            self._progress_bar = ProgressBar(display, watch=self._loss_watch)
            built_in.append(self._progress_bar)
        if settings.persist_minutes is not None:
            built_in.append(SaveByTime(settings.persist_minutes))
        if settings.max_seconds is not None:
            built_in.append(StopByTime(settings.max_seconds))
        if self._ledger is not None:
            built_in.append(self._ledger)
        for plugin in [*built_in, *plugins]:
            gathered.add_plugin(plugin)
        gathered.add_all(hooks)
        if self.is_main:
            # Last, for the line to have what the hooks add to the metrics.
            gathered.add_plugin(EpochLog())
        if self._view is not None:
            gathered.add_plugin(InlineEpochs(self._view))
        return gathered

    def _fenced(self, store: Store, fence: Fence) -> FencedStore:
        return FencedStore(store, fence) if self._view is None else ShownStore(store, fence, self._view)

    # Parts that few runs need are imported where a run asks for them.

    @staticmethod
    def _proof_orders() -> Orders | None:
        if "MINETORCH_PROVE" not in os.environ:
            return None
        from minetorch.prove.orders import Orders

        return Orders.from_environ(os.environ)

    def _keep_ledger(self, store: Store) -> KeepLedger:
        from minetorch.plugins.ledger import KeepLedger

        return KeepLedger(store, self._origin, self.logger)

    def _recorder(self, proof: Orders, saved: Collection[Any]) -> Any:
        from minetorch.prove.recorder import Recorder

        return Recorder(
            proof,
            self._store.local_path(),
            generation=lambda: self._origin()[0],
            persist=lambda: self.persist(wait=True),
            saved=saved,
        )

    def _origin(self) -> tuple[int, str | None]:
        return self._persistence.origin()

    def _share_out(self, train: DataLoader[Any], val: DataLoader[Any] | None) -> None:
        settings = self.settings
        share: Callable[..., RankLoader] = (
            partial(share_out_by_shards, shards=settings.virtual_shards)
            if settings.elastic
            else partial(share_out, split_batches=settings.split_batches)
        )
        share = partial(share, world=self.world, seed=settings.seed, place=placement(self.device))
        self.train_dataloader = share(train, training=True)
        self.val_dataloader = None if val is None else share(val, training=False)
        arguments.check_length("train_dataloader", self.train_dataloader)
        if val is not None:
            arguments.check_length("val_dataloader", self.val_dataloader)

    def _checkpointer(self, store: Store) -> Checkpointer:
        return Checkpointer(
            store,
            keep_last=self.settings.keep_last,
            keep_best=self.settings.keep_best,
            keep_every=self.settings.keep_every,
            keep_every_steps=self.settings.keep_every_steps,
            monitor=self.settings.monitor,
            mode=self.settings.mode,
            expected_keys=REQUIRED_KEYS,
            logger=self.logger,
        )

    def train(self) -> None:
        """Train until `max_epochs`, or until stopped. Every rank calls it.

        It can be called again, to continue after a stop: it then takes the run again.

        A SIGTERM or SIGUSR2 to any rank's process is taken for a notice, unless the script handles it itself: all
        ranks save at the same step and stop. So they do before the end of a SLURM job, where its time is known.

        Raises:
            RanksDifferError: the ranks do not have the same weights, at the start or before a save.
            StoppedEarly: after such a notice, when all is saved; it ends the script with exit code 75.
            SupersededError: it was called again, and another process has started the run since the first call.
        """
        self._persistence.renew()
        self._log.reopen()
        self._in_loop, self._ended = True, "failed"
        if self._view is not None:
            self._view.here()
        with NOTICES.noted():
            try:
                self._modes.begin()
                self._replicas.check()
                self._train_epochs()
                self._hear(wait=True)
                noticed = not self._at_end() and self._is_noticed(is_time_up=self.is_main and self._job_end.is_near)
                self._hooks.call("before_quit")
                self._hear(wait=True)
                self._log.ended(self.progress.step)
                self._ended = "finished" if self._at_end() else "stopped early"
            except KeyboardInterrupt:
                self._ended = "interrupted"
                raise
            finally:
                self._in_loop = False
                self._modes.end()
                self.close()
                self._heartbeat.enter(Phase.DONE)
        if noticed:
            raise StoppedEarly

    def _train_epochs(self) -> None:
        if self._at_end():
            self.logger.info("All %d epochs are done. Raise max_epochs to continue.", self.current_epoch)
        elif self.progress.epoch_complete and self._is_stopped_before_epoch():
            self.logger.info("Stopped before epoch %d, as asked.", self.current_epoch + 1)
            return
        elif self.is_main:
            self.logger.info("Training on %s.", self.world.describe())
        while not self._at_end():
            self._begin_epoch()
            if not self._run_epoch():
                break

    def _begin_epoch(self) -> None:
        """Turn to the next epoch, or to the rest of one.

        Hooks that run when a Trainer starts may draw random numbers, and an uninterrupted run would not have.
        """
        if self.progress.epoch_complete:
            self._contents.let_generators_go()
        self.progress.start_epoch()
        self._take_up_epoch()
        self._heartbeat.epoch(self.current_epoch)
        self._modes.train()
        self._hooks.call("before_epoch_start", epoch=self.current_epoch)
        self._contents.let_generators_go()

    @property
    def history(self) -> History:
        """The run's starts up to this one: `trainer.history.starts`."""
        return self._contents.history

    def _must_stop(self) -> bool:
        return NOTICES.signum != 0 or (self._job_end.is_known and self.is_main and self._job_end.is_near)

    def _is_stopped_before_epoch(self) -> bool:
        """Whether it was asked to stop while no epoch was under way, as a hook at `after_init` may."""
        asked = self._ask_all()
        if asked & {"save_and_stop", "save"}:
            self._save()
        return bool(asked & {"save_and_stop", "stop_after_epoch"})

    def _is_noticed(self, *, is_time_up: bool = False) -> bool:
        """Whether a signal, or its time, asks any rank to make way: then the log says so, and it counts as obeyed.

        Every rank calls it.
        """
        signals, times = zip(*self.world.gather((NOTICES.signum, is_time_up)), strict=True)
        if not any((*signals, *times)):
            return False
        self.logger.info(
            "%s: stopped early, with all work saved up to step %d. Run the same command again to continue.",
            describe(signals) or "The job's time is nearly up",
            self.progress.step,
        )
        NOTICES.answered()
        return True

    def _at_end(self) -> bool:
        last = self.settings.max_epochs
        return last is not None and self.progress.epoch_complete and self.progress.epoch >= last

    def _run_epoch(self) -> bool:
        """Run the current epoch, or the rest of it. Returns whether to go on after it."""
        asked = self._train_epoch()
        self._modes.evaluate()
        if "save_and_stop" in asked:
            return self._stop_in_epoch()
        train_loss, val_loss = self._train_loss(), None
        if self._is_validation_due():
            val_loss, cut_short = self._validate()
            if cut_short:
                return self._stop_in_epoch()
        self._end_epoch(train_loss, val_loss)
        asked |= self._ask_all()
        stop = bool(asked & {"save_and_stop", "stop_after_epoch"})
        self._persist_epoch(must=stop or self._at_end() or "save" in asked)
        if stop:
            self.logger.info("Stopped after epoch %d, as asked.", self.current_epoch)
        return not stop

    def _stop_in_epoch(self) -> bool:
        self.logger.info(
            "Stopped in epoch %d after iteration %d, as asked.", self.current_epoch, self.progress.iteration
        )
        return False

    def _train_epoch(self) -> frozenset[Request]:
        """Train on this rank's share of the epoch's data. Returns what any rank asked for on the way.

        It saves before it stops, while the loader's workers are still there: to end them may take seconds, which
        who asked to stop may not grant.
        """
        progress, step_every = self.progress, self.settings.accumulated_iter
        self.backend.start_epoch()
        epoch = self._limited(self._open_epoch(), done=progress.iteration)
        left, batches = epoch.iterations, epoch.batches
        self.train_iterations = None if left is None else progress.iteration + left
        asked: frozenset[Request] = NOTHING
        pending = 0
        if self._progress_bar is not None:
            batches = self._progress_bar.watch(batches)
        for batch, is_last in mark_last(batches) if step_every > 1 else zip(batches, repeat(True), strict=False):
            pending += 1
            stepping = is_last or pending == step_every
            self._train_iteration(batch, pending, stepping)
            if stepping:
                pending = 0
                if after := self._after_step():
                    asked |= after
                if "save_and_stop" in asked:
                    return asked
        asked |= self._ask_all()
        if "save_and_stop" in asked:
            self._save()
        return asked

    def _open_epoch(self) -> Epoch:
        """The epoch's data, or the rest of it. In the middle of an epoch, say what has changed since the checkpoint."""
        progress, loader = self.progress, self.train_dataloader
        open_epoch = partial(self._comparison.epoch, "train_dataloader", loader, progress.epoch)
        epoch = open_epoch(progress.position, self._stream)
        if progress.iteration:
            differences = [] if progress.data is None else epoch.data.differences(progress.data)
            if differences:
                # Batches of another batch sampler cannot be counted on; samples can.
                epoch = open_epoch(stream=self._stream, after_samples=progress.samples_in_epoch)
            if self.is_main:
                log_data(self.logger, progress, epoch, differences, is_recorded=progress.data is not None)
        progress.position, progress.data = epoch.start, epoch.data.to_plain()
        return epoch

    def _train_iteration(self, batch: Batch, pending: int, stepping: bool) -> None:
        """One forward and backward and, at the end of an accumulation, the optimizer's step."""
        progress, hooks, data = self.progress, self._hooks, batch.data
        index = progress.iteration
        self.batch = batch
        if pending == 1:
            self.backend.forget_other_gradients()
        if hooks.any_at("before_train_iteration_start"):
            hooks.call("before_train_iteration_start", index=index, data=data)
        loss = self._add_gradients(batch, stepping) if self._exact is None else self._add_exact(self._exact, batch)
        progress.count(batch.units, batch.total)
        self._stream = batch.stream
        self._accumulating = not stepping
        if stepping:
            # The epoch's last accumulation may be shorter than the others.
            self.backend.step(self.settings.clip_grad_norm, scale=self.settings.accumulated_iter / pending)
            progress.step += 1
        self._heartbeat.iteration(progress.step)
        if self._progress_bar is not None:
            self._progress_bar.trained(self, index, loss)
        if hooks.any_at("after_train_iteration_end"):
            hooks.call("after_train_iteration_end", index=index, data=data, loss=loss)

    def _add_gradients(self, batch: Batch, stepping: bool) -> torch.Tensor:
        """Forward and backward of this rank's batch. Returns its mean loss."""
        backend, counted = self.backend, batch.counted
        # DDP takes the ranks' mean; a smaller share of the last batch must weigh less in it.
        weight = counted * self.world.size / (batch.total * self.settings.accumulated_iter)
        with backend.exchanging(stepping):
            loss = self._loss(batch.data, training=True)
            backend.backward(loss if weight == 1.0 else loss * weight)
        loss = loss.detach()
        self._loss_sum.add_(loss, alpha=counted)
        return loss

    def _add_exact(self, exact: Exact, batch: Batch) -> torch.Tensor:
        """Forward and backward of this rank's virtual shards. Returns the mean loss of all ranks' samples."""
        loss = exact.add_gradients(
            batch,
            partial(self._loss, training=True),
            epoch=self.current_epoch,
            accumulated=self.settings.accumulated_iter,
        )
        if self.is_main:
            self._loss_sum.add_(loss, alpha=batch.total)
        return loss

    def _after_step(self) -> frozenset[Request]:
        """Exchange requests between ranks, and save if it is time. Returns what is asked of the loop."""
        if self._persist_later:
            self._persist_what_waited()
        self._ask_for_news()
        asked, every = self._stop_vote.at_step(), self.settings.persist_steps
        due = every is not None and self.progress.step % every == 0
        if not (asked or due):
            return NOTHING
        if "poll_saves" in asked:
            self._hear()
        due = due or "save" in asked
        if "save_and_stop" in asked or (due and not self._is_put_off()):
            self._save()
        return asked - {"save", "poll_saves"}

    def _persist_what_waited(self) -> None:
        """Save what was asked for in the middle of the accumulation."""
        for names, wait in self._persist_later:
            self.persist(*names, wait=wait)
        self._persist_later.clear()

    def _ask_all(self) -> frozenset[Request]:
        """What any rank has asked for up to now."""
        self._ask_for_news()
        asked = self._stop_vote.now()
        if "poll_saves" in asked:
            self._hear()
        return asked - {"poll_saves"}

    def _ask_for_news(self) -> None:
        if self._persistence.has_news:
            self._stop_vote.ask("poll_saves")
        if self._persistence.another_is_due():
            self._stop_vote.ask("save")

    def _hear(self, *, wait: bool = False) -> None:
        """Tell of the checkpoints that have become durable, or raise what kept one from it, on every rank."""
        before = self._heartbeat.enter(Phase.SAVING) if wait else None
        news = self._persistence.news(wait=wait)
        if before is not None:
            self._heartbeat.enter(before)
        for names, path, step in news:
            self._heartbeat.saved(step)
            self._hooks.call("after_checkpoint_persisted", names=names, path=path)

    def _is_put_off(self) -> bool:
        return self.settings.persist_policy == "coalesce" and self._persistence.put_off()

    @torch.no_grad()
    def _validate(self) -> tuple[float | None, bool]:
        """The world's mean validation loss (None where there is not one sample), and whether a stop cut it short.

        What is saved then is the state before the validation, which the run does anew when it goes on.
        """
        assert self.val_dataloader is not None
        self._heartbeat.enter(Phase.VALIDATING)
        self.backend.align_buffers()
        loader = self.val_dataloader
        opened = self._limited(self._comparison.epoch("val_dataloader", loader, self.current_epoch))
        self.val_iterations, batches = opened.iterations, opened.batches
        if self._progress_bar is not None:
            batches = self._progress_bar.watch(batches)
        # One for each virtual shard: added up at the end alone, they do not depend on which rank had which.
        loss_sums = self._zero(self.settings.virtual_shards if self._exact else 1)
        samples, cut_short, generators = 0, False, generator_states()
        with ExitStack() as around:
            for make in self.around_validation:
                around.enter_context(make())
            for index, batch in enumerate(batches):
                self.batch = batch
                if self._stop_vote.stop_is_wanted():
                    cut_short = True
                    break
                if self._hooks.any_at("before_val_iteration_start"):
                    self._hooks.call("before_val_iteration_start", index=index, data=batch.data)
                loss = self._validation_loss(batch, loss_sums)
                samples += batch.counted
                self._heartbeat.beat()
                if self._progress_bar is not None:
                    self._progress_bar.validated(self, index, loss)
                if self._hooks.any_at("after_val_iteration_end"):
                    self._hooks.call("after_val_iteration_end", index=index, data=batch.data, loss=loss)
        sums = torch.cat([loss_sums, loss_sums.new_tensor([samples, cut_short])])
        *world_sums, world_samples, world_cut = self.reduce(sums, "sum").tolist()
        if world_cut or self._exact is not None:
            restore_generators(generators)
        if world_cut:
            self._save()
        else:
            self._comparison.stream_end("val_dataloader", loader)
        return sum(world_sums) / world_samples if world_samples else None, world_cut > 0

    def _validation_loss(self, batch: Batch, sums: torch.Tensor) -> torch.Tensor:
        """The mean loss of this rank's batch; times its samples, it is added to `sums`."""
        if self._exact is not None:
            loss_of = partial(self._loss, training=False)
            return self._exact.validation_loss(batch, loss_of, sums, epoch=self.current_epoch)
        loss = self._loss(batch.data, training=False).detach()
        sums[0].add_(loss, alpha=batch.counted)
        return loss

    def _loss(self, data: Any, *, training: bool) -> torch.Tensor:
        try:
            loss = self._loss_func(self, data)
        except RuntimeError as error:
            explained = self.backend.explain_unused(error)
            if explained is None:
                raise
            raise explained from None
        device = self._loss_sum.device
        if (
            not isinstance(loss, torch.Tensor)
            or loss.numel() != 1
            or (training and not loss.requires_grad)
            or loss.device != device
            or loss.is_complex()
        ):
            arguments.refuse_loss(loss, device)
        return loss if loss.ndim == 0 else loss.reshape(())

    def _is_validation_due(self) -> bool:
        return self.val_dataloader is not None and self.current_epoch % self.settings.eval_stride == 0

    def _end_epoch(self, train_loss: float, val_loss: float | None) -> None:
        self.progress.epoch_complete = True
        self.metrics = {"train_loss": train_loss}
        self.lowest_train_loss = min(self.lowest_train_loss, train_loss)
        if val_loss is not None:
            self.metrics["val_loss"] = val_loss
            self._watch_loss(val_loss, "validation")
            self.lowest_val_loss = min(self.lowest_val_loss, val_loss)
        self._hooks.call("after_epoch_end", epoch=self.current_epoch, train_loss=train_loss, val_loss=val_loss)
        self.drawer.flush()

    def _persist_epoch(self, *, must: bool) -> None:
        """Save at the strides, at the best, and where it must be.

        Raises:
            ConfigurationError: `monitor` is no metric of this run. The checkpoint is on its way nevertheless.
        """
        stride = self.settings.persist_stride
        if must or (stride is not None and self.current_epoch % stride == 0) or self._persistence.is_best():
            self._save()
        self._persistence.check_monitor()

    def persist(self, *names: str, wait: bool = False) -> str | None:
        """Save a checkpoint of this moment, under the names given and `latest`. Every rank must call it.

        It returns when the state is copied; the copy is saved while training goes on, and hooks at
        `after_checkpoint_persisted` tell when that is done. Outside of `train` it waits for that.

        Args:
            names: the user's own, for the checkpoint.
            wait: return when the checkpoint is durable.

        Returns:
            The checkpoint's path or URL; None in the middle of an accumulation (`accumulated_iter`), at whose end it
            is saved.

        Raises:
            ConfigurationError: a name that is not allowed, or a state that a checkpoint cannot hold.
            StorageError: the storage failed; the run's earlier checkpoints are as they were. If it fails later, that
                is raised after the next optimizer step.
        """
        if self._accumulating:
            # The gradients so far are in no checkpoint: going on from here, the step would lack them.
            self._persist_later.append((names, wait))
            return None
        path = self._save(names)
        if wait or not self._in_loop:
            self._hear(wait=True)
        return path

    def _save(self, names: Sequence[str] = ()) -> str:
        names = (*names, *self._names_of_next_save)
        self._names_of_next_save.clear()
        self._hooks.call("before_checkpoint_persisted", names=names)
        self._sum_up()
        stream = None if self.progress.epoch_complete else self._stream
        self.progress.stream = None if stream is None else stream.to_plain()
        before = self._heartbeat.enter(Phase.SAVING)
        self._replicas.check()
        path = self._persistence.save(names)
        self._heartbeat.enter(before)
        return path

    def _train_loss(self) -> float:
        """The world's mean training loss of the epoch."""
        self._sum_up()
        samples = self.progress.samples_in_epoch
        if not samples:
            raise ConfigurationError(
                "train_dataloader gave no batch in a whole epoch. Is its dataset empty, or smaller than a batch of all "
                "workers with drop_last=True?"
            )
        return self.progress.loss_sum / samples

    def _sum_up(self) -> None:
        """Bring the ranks' sums of losses into the counters, from where a resumed epoch goes on."""
        sums = torch.zeros(self.world_size, dtype=self._loss_sum.dtype, device=self.device)
        sums[self.rank] = self._loss_sum
        self.progress.loss_sums = self.world.reduce(sums, "sum").tolist()
        self.progress.loss_sum = sum(self.progress.loss_sums)
        self._watch_loss(self.progress.loss_sum, "training")

    def _watch_loss(self, loss: float, which: str) -> None:
        if self.is_main:
            self._loss_watch.look(loss, step=self.progress.step, epoch=self.current_epoch, which=which)

    def _take_up_epoch(self) -> None:
        """Go on with the epoch's sum of losses (rank 0 has it all at another world size than before) and its stream."""
        progress = self.progress
        own = progress.loss_sum if self.is_main else 0.0
        if len(progress.loss_sums) == self.world_size:
            own = progress.loss_sums[self.rank]
        self._loss_sum = self._zero() + own
        self._stream = None if progress.stream is None else StreamPosition.from_plain(progress.stream)

    def _zero(self, *shape: int) -> torch.Tensor:
        """A sum of losses that stays on the device, where adding to it waits for nothing."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def _limited(self, epoch: Epoch, done: int = 0) -> Epoch:
        """The epoch, or its beginning under `trival`, of which `done` iterations were done before."""
        if not self.settings.trival:
            return epoch
        allowed = max(0, TRIVIAL_ITERATIONS - done)
        left = None if epoch.iterations is None else min(epoch.iterations, allowed)
        return epoch._replace(iterations=left, batches=islice(epoch.batches, allowed))

    def close(self) -> None:
        """Finish a save, draw the last state and let the run go. `train` does it when it ends, however it ends."""
        # A launcher takes one that trains and does not move for stuck, when another rank is gone.
        before = self._heartbeat.enter(Phase.SAVING)
        steps: list[Callable[[], object]] = [self._stop_vote.close]
        if self._progress_bar is not None:
            steps.append(self._progress_bar.close)
        if self._exact is not None:
            steps.append(self._exact.close)
        if self._ledger is not None:
            steps.append(self._ledger.close)
        steps += [self._persistence.close, self.drawer.close, self._log.close]
        with ExitStack() as stack:
            if self._view is not None:
                stack.callback(self._view.close)
            for loader in (self.train_dataloader, self.val_dataloader):
                if loader is not None:
                    stack.callback(loader.end_workers)
            stack.callback(self._comparison.close)
            stack.callback(self._persistence.release, self._ended)
            for step in reversed(steps):
                stack.callback(step)
        self._heartbeat.enter(before)
