"""The Trainer: joins the other workers, wires the parts of a training together, and runs it.

Where to add a part:

- A hook point: its name and payload in `HOOK_POINTS` (`hooks.py`), and a call of `Hooks.call` where it happens:
  `training/loop.py`, `training/validation.py`, `training/saves.py`, or here.
- A strategy: its options in `options/strategies.py`, a subclass of `Strategy` in `strategies/`, and a branch in
  `choose_strategy`. `Strategy` says what the rest of the Trainer expects of it.
- A drawer: a subclass of `Drawer` in `drawers/`, and its name in `DRAWERS` (`drawers/make.py`).
- A storage: nothing if fsspec has it. Otherwise the methods of `_Files` and a branch in `Store.open`
  (`checkpoint/store.py`).
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
from torch import nn
from torch.utils.data import DataLoader

from minetorch.checkpoint import Checkpointer, Store
from minetorch.checkpoint.fence import Fence, FencedStore
from minetorch.checkpoint.permit import check_folders
from minetorch.checkpoint.stateful import Stateful
from minetorch.console.bars import ViewDisplay, make_display
from minetorch.console.progress_bar import ProgressBar
from minetorch.context import TrainerState
from minetorch.data import Comparison
from minetorch.data.order import derive_seed
from minetorch.data.randomness import seed_generators
from minetorch.distributed.deadline import JobEnd
from minetorch.distributed.signals import NOTICES, describe
from minetorch.distributed.stop_vote import StopVote
from minetorch.distributed.world import World
from minetorch.drawers import Drawer, make_drawers
from minetorch.errors import StoppedEarly
from minetorch.hooks import Hooks
from minetorch.log import RunLog
from minetorch.notebook import NOTEBOOK_VARIABLE, ShownStore, find_view
from minetorch.options import checks
from minetorch.options.checkpoints import Checkpoints
from minetorch.options.facts import facts_of
from minetorch.options.settings import Settings
from minetorch.options.strategies import DDP, Exact, strategy_options
from minetorch.plugins.drawing import DrawLosses
from minetorch.plugins.epoch_log import EpochLog
from minetorch.plugins.inline_epochs import InlineEpochs
from minetorch.plugins.saving import SaveByTime
from minetorch.plugins.stopping import StopByTime
from minetorch.resumption.contents import REQUIRED_KEYS, Contents
from minetorch.resumption.history import Ended, History
from minetorch.resumption.persistence import Persistence
from minetorch.strategies import choose_strategy
from minetorch.strategies.replicas import Replicas
from minetorch.training.loop import Loop
from minetorch.training.loss_watch import LossWatch
from minetorch.training.losses import LossFunction, TrainingLoss
from minetorch.training.modes import Modes
from minetorch.training.saves import Saves
from minetorch.training.step import TrainStep
from minetorch.training.summary import ending
from minetorch.training.validation import Validation
from minetorch_launch.heartbeat import HeartbeatWriter, Phase

if TYPE_CHECKING:
    from minetorch.ledger.plugin import KeepLedger
    from minetorch.prove.orders import Orders


class Trainer(TrainerState):
    """Trains a model, and resumes from the newest checkpoint when the script is started again.

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
            after an optimizer step: save or stop, if it is due or any rank has asked for it
        put the model into eval mode, until the next epoch
        every eval_stride epochs, for each batch of this rank's share of the validation data:
            before_val_iteration_start
            loss_func(trainer, data)
            after_val_iteration_end
        write the mean losses of all ranks to metrics
        after_epoch_end; the losses are drawn first
        every persist_stride epochs, at the best epoch so far, and at the last one: save
    wait for all saves
    before_quit
    ```

    A save calls `before_checkpoint_persisted`, copies the state and lets training continue. When the checkpoint is
    durable, `after_checkpoint_persisted` follows: after a later step, after an epoch, or at the end.
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
        eval_stride: int = 1,
        persist_stride: int | None = 1,
        drawer: str | Drawer | Sequence[str | Drawer] | None = "matplotlib",
        hooks: Mapping[str, Any] | None = None,
        statable: Mapping[str, Stateful] | None = None,
        max_epochs: int | None = None,
        logging_format: str | None = None,
        trival: bool = False,
        in_notebook: bool = False,
        checkpoints: Checkpoints = Checkpoints(),
        strategy: Literal["ddp", "exact"] | DDP | Exact = "ddp",
        plugins: Iterable[Any] = (),
        max_time: float | timedelta | None = None,
        accumulated_iter: int = 1,
        amp: Literal[False, "bf16", "fp16"] = False,
        clip_grad_norm: float | None = None,
        seed: int = 0,
        split_batches: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        if_running: Literal["refuse", "wait", "replace"] = "refuse",
        ledger: bool = False,
        **unknown: NoReturn,
    ) -> None:
        """Join the other workers, place the model, and resume.

        Args:
            alchemistic_directory: path or fsspec URL (`s3://bucket/runs`) of the folder that holds all runs.
            model: the user's model, on any device. The Trainer moves it to this worker's device.
            optimizer: an optimizer of the model's parameters.
            train_dataloader: a DataLoader over all of the data, the same on every rank. The Trainer shares the data out
                over the ranks. It refuses a subclass that overrides iteration.
            loss_func: called as `loss_func(trainer, data)`, or by name if its two parameters are named `data` and
                `trainer`. It calls `trainer.model`, and returns a scalar tensor: the mean over the batch's samples.
            val_dataloader: the same for the validation data; None: no validation.
            code: name of the run. Its files are in `{alchemistic_directory}/{code}/`.
            resume: True: resume from the newest checkpoint that passes verification, if there is one. False: start
                from scratch. Or the checkpoint to resume from: an epoch's number, "latest", "best", "epoch_3", a file
                name, an absolute path or a URL.
            eval_stride: validate every `eval_stride` epochs.
            persist_stride: save every `persist_stride` epochs and after the last one; None: only after the last one.
                See also `checkpoints`.
            drawer: "matplotlib", "tensorboard", "sql", a `Drawer`, a list of these, or None.
            hooks: a function or a list of functions for each hook point, by its name.
            statable: named objects to keep in the checkpoint, such as an LR scheduler.
            max_epochs: the number of the last epoch; None: train until stopped.
            logging_format: format of a log line, as in the standard library's `logging`; None:
                `"%(levelname)s %(asctime)s %(message)s"` in log.txt, and a shorter form on the console.
            trival: stop each pass over the data after 10 iterations.
            in_notebook: show output for a notebook. Workers of `minetorch.notebook.launch` always do.
            checkpoints: when to save apart from the ends of epochs, which checkpoints to keep, and which is best: see
                `minetorch.Checkpoints`.
            strategy: how the model trains on several workers: "ddp", or "exact" for the same bits at any number of
                workers. To set their options, give a `minetorch.DDP` or a `minetorch.Exact`.
            plugins: objects with methods named after hook points. Checkpoints hold the state of those that have
                `state_dict` and `load_state_dict`.
            max_time: seconds (or a timedelta) after which the run saves and stops.
            accumulated_iter: the number of iterations in an optimizer step.
            amp: False, "bf16" or "fp16": mixed precision in the model's forward.
            clip_grad_norm: upper limit of the gradients' total 2-norm at each step.
            seed: the seed of the data's order and of every random generator.
            split_batches: whether the loaders' `batch_size` is the size for all workers together, not for each.
            storage_options: options for fsspec.
            if_running: what to do if another process is training this run: "refuse" with an error, "wait" until it
                ends, or "replace" it: it stops, and this process takes over the run.
            ledger: record the samples of each step, for `minetorch.ledger` to read.
            unknown: not allowed. The error names the argument to use instead.

        Raises:
            ConfigurationError: an argument is wrong; nothing was written.
            CheckpointError: `resume` names no checkpoint, or one that cannot be used.
            StorageError: the storage cannot be used.
            StoppedEarly: a signal asked the process to end; see `train`.
        """
        checks.refuse_unknown(unknown, Trainer.__init__)
        super().__init__()
        self._heartbeat = HeartbeatWriter.from_environ(os.environ)
        self._heartbeat.begin()
        self.settings = Settings(
            code=code,
            resume=resume,
            eval_stride=eval_stride,
            persist_stride=persist_stride,
            max_epochs=max_epochs,
            max_time=max_time,
            logging_format=logging_format,
            trival=trival,
            in_notebook=True if in_notebook is False and NOTEBOOK_VARIABLE in os.environ else in_notebook,
            accumulated_iter=accumulated_iter,
            amp=amp,
            clip_grad_norm=clip_grad_norm,
            seed=seed,
            split_batches=split_batches,
            if_running=if_running,
            ledger=ledger,
            checkpoints=checkpoints,
            strategy=strategy_options(strategy),
        )
        checks.check_place(alchemistic_directory, storage_options)
        proof = _proof_orders()
        if proof is not None:
            self.settings = proof.settings(self.settings)
            alchemistic_directory, storage_options = proof.directory(alchemistic_directory), None
        checks.check_objects(model, optimizer, train_dataloader, val_dataloader)
        plugins, hooks = checks.check_plugins(plugins), checks.check_hooks(hooks)
        checks.check_monitor(self.settings.checkpoints, val_dataloader, hooks, plugins)
        states = checks.check_statable(statable), checks.stateful_plugins(plugins)
        self._loss_func = checks.loss_caller(loss_func)
        self._in_loop = False
        self._ended: Ended | None = None
        self.optimizer = optimizer
        self.world = World.from_environ(os.environ)
        self.strategy = choose_strategy(self.settings, self.world, model, optimizer)
        self._share_out(train_dataloader, val_dataloader)
        store = Store.open(alchemistic_directory, storage_options).child(*code.split("/"))
        self._open_outputs(store)
        checkpointer = self._make_checkpointer(store.child("models")) if self.is_main else None
        fence = Fence(store.child("models"), logger=self.logger) if checkpointer is None else checkpointer.fence
        self._ledger = self._keep_ledger(store) if self.settings.ledger else None
        self._hooks = self._gather_hooks(plugins, hooks, checkpointer)
        if proof is not None:
            self._hooks.add_plugin(self._recorder(proof, store, states))
        self.files = self._fenced(store, fence) if self.is_main else store
        self.drawer = make_drawers(
            drawer,
            store=self.files,
            code=code,
            current_x=lambda: self.current_epoch,
            logger=self.logger,
            silent=not self.is_main,
        )
        self._wire(states, checkpointer)
        check_folders(store)
        # Nothing was written up to here, and no rank has waited for another.
        self.world.connect(say=self.logger.warning)
        try:
            self._start(fence, checkpointer, train_dataloader)
        except BaseException:
            self.close()
            raise

    def _share_out(self, train: DataLoader[Any], val: DataLoader[Any] | None) -> None:
        self.train_dataloader = self.strategy.share_out(train, training=True)
        self.val_dataloader = None if val is None else self.strategy.share_out(val, training=False)
        checks.check_length("train_dataloader", self.train_dataloader)
        if val is not None:
            checks.check_length("val_dataloader", self.val_dataloader)

    def _open_outputs(self, store: Store) -> None:
        """Open the log, and on rank 0 the notebook's view and the progress bar."""
        self._view = find_view(os.environ) if self.in_notebook and self.is_main else None
        # The log file stays closed until `begin`: before the claim, the run may belong to another process.
        self._log = RunLog(
            store,
            rank=self.rank,
            world_size=self.world_size,
            logging_format=self.settings.logging_format,
            in_notebook=self.in_notebook,
            view=self._view,
            held=True,
        )
        self.logger = self._log.logger
        self._loss_watch = LossWatch(self.logger)
        self._progress_bar: ProgressBar | None = None
        if self.is_main:
            in_view, in_notebook = self._view, self.in_notebook
            display = make_display(os.environ, in_notebook=in_notebook) if in_view is None else ViewDisplay(in_view)
            self._progress_bar = ProgressBar(display, watch=self._loss_watch)

    def _make_checkpointer(self, store: Store) -> Checkpointer:
        options = self.settings.checkpoints
        return Checkpointer(
            store,
            keep_last=options.keep_last,
            keep_best=options.keep_best,
            keep_every=options.keep_every,
            keep_every_steps=options.keep_every_steps,
            monitor=options.monitor,
            mode=options.mode,
            expected_keys=REQUIRED_KEYS,
            logger=self.logger,
        )

    def _fenced(self, store: Store, fence: Fence) -> FencedStore:
        return FencedStore(store, fence) if self._view is None else ShownStore(store, fence, self._view)

    def _gather_hooks(
        self, plugins: Iterable[Any], hooks: Mapping[str, Any], checkpointer: Checkpointer | None
    ) -> Hooks:
        settings, gathered = self.settings, Hooks(self, self._heartbeat)
        built_in: list[Any] = [DrawLosses()]
        if self._progress_bar is not None:
            built_in.append(self._progress_bar)
        if settings.checkpoints.every_minutes is not None:
            built_in.append(SaveByTime(settings.checkpoints.every_minutes))
        if settings.max_seconds is not None:
            built_in.append(StopByTime(settings.max_seconds))
        if self._ledger is not None:
            built_in.append(self._ledger)
        for plugin in [*built_in, *plugins]:
            gathered.add_plugin(plugin)
        gathered.add_all(hooks)
        if checkpointer is not None:
            # Last, so that its line has the metrics that hooks add.
            gathered.add_plugin(EpochLog(checkpointer.would_be_best))
        if self._view is not None:
            gathered.add_plugin(InlineEpochs(self._view))
        return gathered

    # Parts that few runs need are imported where a run asks for them.

    def _keep_ledger(self, store: Store) -> KeepLedger:
        from minetorch.ledger.plugin import KeepLedger

        return KeepLedger(store, self._origin, self.logger)

    def _recorder(self, proof: Orders, store: Store, states: Sequence[Mapping[str, Stateful]]) -> Any:
        from minetorch.prove.recorder import Recorder

        return Recorder(
            proof,
            store.local_path(),
            generation=lambda: self._origin()[0],
            persist=lambda: self.persist(wait=True),
            saved=[member for group in states for member in group.values()],
        )

    def _origin(self) -> tuple[int, str | None]:
        return self._persistence.origin()

    def _wire(self, states: Sequence[Mapping[str, Stateful]], checkpointer: Checkpointer | None) -> None:
        """Make the loop, and the parts that it works with."""
        settings, loss = self.settings, LossFunction(self._loss_func, self, self.device)
        statable, plugins = states
        self._contents = Contents(self, statable, plugins)
        self._persistence = Persistence(self, checkpointer, self._contents, self._log)
        self._job_end = JobEnd.from_environ(os.environ)
        self._stop_vote = StopVote(self.world, must_stop=self._must_stop)
        self._comparison = Comparison(self.world, self.logger)
        self._modes = Modes(self.unwrapped_model, lambda: self.model, self.logger)
        self._replicas = Replicas(self.world, self.unwrapped_model, self.optimizer, self.logger)
        self._losses = TrainingLoss(self.world, self.progress, self._loss_watch)
        step = TrainStep(
            self.strategy,
            loss,
            self._losses,
            accumulated=settings.accumulated_iter,
            clip_grad_norm=settings.clip_grad_norm,
        )
        self._saves = Saves(
            self,
            step=step,
            losses=self._losses,
            hooks=self._hooks,
            stop_vote=self._stop_vote,
            persistence=self._persistence,
            replicas=self._replicas,
            heartbeat=self._heartbeat,
        )
        self._loop = Loop(
            self,
            step=step,
            losses=self._losses,
            validation=Validation(
                self, loss, self._hooks, self._stop_vote, self._comparison, self._heartbeat, self._progress_bar
            ),
            saves=self._saves,
            hooks=self._hooks,
            modes=self._modes,
            contents=self._contents,
            comparison=self._comparison,
            watch=self._loss_watch,
            bar=self._progress_bar,
            heartbeat=self._heartbeat,
        )

    def _start(self, fence: Fence, checkpointer: Checkpointer | None, train_dataloader: DataLoader[Any]) -> None:
        """Place the model, claim the run, restore its state, and call `after_init`. Every rank calls it."""
        strategy = self.strategy
        self._comparison.traits({"train_dataloader": self.train_dataloader, "val_dataloader": self.val_dataloader})
        strategy.place()
        seed_generators(derive_seed(self.settings.seed, "rank", 0 if strategy.shares_generators else self.rank))
        fence.follow(self._persistence.claim())
        # When this Trainer is garbage, its thread ends all others and releases the run.
        weakref.finalize(self, fence.abandon).atexit = False
        # Before this block, a signal must end ranks that wait for each other or for another run. After it and until
        # train(), there is nothing to save, and a signal has its usual effect.
        with NOTICES.noted():
            try:
                self._persistence.restore(self.settings.resume)
            finally:
                self._log.begin(guard=fence.check)
            if checkpointer is not None:
                options = strategy.optimizer_state.options
                checkpointer.settings = facts_of(
                    self.settings, self.unwrapped_model, self.optimizer, options, train_dataloader
                )
            self._losses.take_up()
            self._heartbeat.resumed(self.progress.step, self.progress.epoch, saved=self.progress.epoch > 0)
            self._hooks.call("after_init")
            self._contents.take_over_plugins()
            self._persistence.check_state()
            if self._is_preempted():
                raise StoppedEarly

    def train(self) -> None:
        """Train until `max_epochs`, or until stopped. Every rank calls it.

        To continue after a stop, call it again: it then claims the run again.

        After a SIGTERM or SIGUSR2 to any rank's process, all ranks save at the same step and stop, unless the script
        handles the signal itself. They also do so before the known end of a SLURM job.

        Raises:
            RanksDifferError: the ranks do not have the same weights, at the start or before a save.
            StoppedEarly: after such a stop, when everything is saved. It ends the script with exit code 75.
            SupersededError: on a second call, if another process has started the run since the first one.
        """
        began = time.monotonic()
        self._persistence.renew()
        self._log.reopen()
        self._in_loop, self._ended = True, "failed"
        if self._view is not None:
            self._view.here()
        with NOTICES.noted():
            try:
                self._modes.begin()
                self._replicas.check()
                self._loop.run()
                self._saves.poll(wait=True)
                is_time_up = self.is_main and self._job_end.is_near
                is_preempted = not self._loop.is_at_end and self._is_preempted(is_time_up=is_time_up)
                self._hooks.call("before_quit")
                self._saves.poll(wait=True)
                summary = (
                    ending(self._persistence.best, time.monotonic() - began, self.files.url) if self.is_main else ""
                )
                self._log.ended(self.progress.step, summary)
                self._ended = "finished" if self._loop.is_at_end else "stopped early"
            except KeyboardInterrupt:
                self._ended = "interrupted"
                raise
            finally:
                self._in_loop = False
                self._modes.end()
                self.close()
                self._heartbeat.enter(Phase.DONE)
        if is_preempted:
            raise StoppedEarly

    def persist(self, *names: str, wait: bool = False) -> str | None:
        """Save a checkpoint of the current state, under the given names and `latest`. Every rank must call it.

        It returns when the state is copied. The copy is saved while training continues, and then the hooks at
        `after_checkpoint_persisted` run. Outside of `train` it waits for the save to finish.

        Args:
            names: the user's names for the checkpoint.
            wait: return when the checkpoint is durable.

        Returns:
            The checkpoint's path or URL; None in the middle of an accumulation (`accumulated_iter`): the save then
            starts at its end.

        Raises:
            ConfigurationError: a name is not allowed, or a checkpoint cannot hold the state.
            StorageError: the storage failed. The run's earlier checkpoints have not changed. A later failure is raised
                after the next optimizer step.
        """
        return self._saves.persist(names, wait=wait or not self._in_loop)

    def close(self) -> None:
        """Finish all saves, draw the last state and release the run. `train` always calls it at its end."""
        # No step follows. In the training phase, the launcher would take this rank for hung if another one is gone.
        before = self._heartbeat.enter(Phase.SAVING)
        steps: list[Callable[[], object]] = [self._stop_vote.close]
        if self._progress_bar is not None:
            steps.append(self._progress_bar.close)
        steps.append(self.strategy.close)
        if self._ledger is not None:
            steps.append(self._ledger.close)
        steps += [self._persistence.close, self.drawer.close, self._log.close]
        steps.append(lambda: self._persistence.release(self._ended))
        steps += [self._comparison.close, self.train_dataloader.end_workers]
        if self.val_dataloader is not None:
            steps.append(self.val_dataloader.end_workers)
        if self._view is not None:
            steps.append(self._view.close)
        with ExitStack() as stack:  # it runs every step, also after an error; the last one first
            for step in reversed(steps):
                stack.callback(step)
        self._heartbeat.enter(before)

    @property
    def history(self) -> History:
        """The starts of the run up to this one, in `trainer.history.starts`."""
        return self._contents.history

    def _must_stop(self) -> bool:
        """Whether this rank asks all ranks to save and stop. The stop vote calls it after each step."""
        return NOTICES.signum != 0 or (self._job_end.is_known and self.is_main and self._job_end.is_near)

    def _is_preempted(self, *, is_time_up: bool = False) -> bool:
        """Whether a signal to any rank, or the end of the job, asks the run to end. Every rank calls it.

        If so, it logs this, and clears the signal.
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


def _proof_orders() -> Orders | None:
    """The orders of `minetorch prove`; None if it did not start this process."""
    if "MINETORCH_PROVE" not in os.environ:
        return None
    from minetorch.prove.orders import Orders

    return Orders.from_environ(os.environ)
