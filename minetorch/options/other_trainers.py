"""What other trainers call Minetorch's arguments and hook points, so that an error can name Minetorch's. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

ARGUMENTS = {
    "alchemistic_directory": (
        "default_root_dir dir directory experiment_dir log_dir logging_dir out_dir output_dir root root_dir run_dir "
        "save_dir save_path workdir work_dir"
    ),
    "accumulated_iter": (
        "accumulate_grad_batches accumulation_steps grad_accum grad_accumulation_steps gradient_accumulation "
        "gradient_accumulation_steps"
    ),
    "amp": "bf16 fp16 mixed_precision precision use_amp",
    "clip_grad_norm": "clip_grad clip_norm grad_clip gradient_clip gradient_clip_val max_grad_norm max_norm",
    "code": "experiment experiment_name exp_name name project run_name",
    "drawer": "report_to tensorboard visualizer",
    "eval_stride": "check_val_every_n_epoch eval_every eval_frequency val_every val_interval validate_every",
    "loss_func": "compute_loss criterion loss loss_fn loss_function",
    "max_epochs": "epoch epochs max_epoch n_epochs num_epochs num_train_epochs total_epochs",
    "max_time": "max_duration time_limit timeout",
    "optimizer": "optim optimizers",
    "persist_stride": "save_epochs save_freq save_frequency",
    "plugins": "callback callbacks",
    "resume": "checkpoint checkpoint_path ckpt_path load_from resume_from resume_from_checkpoint",
    "statable": "state states",
    "storage_options": "fs_options s3_options",
    "train_dataloader": (
        "dataloader loader train_data train_dataloaders train_dataset train_iter train_loader training_data dataset"
    ),
    "trival": "trivial dry_run fast_dev_run limit_train_batches limit_val_batches overfit_batches",
    "val_dataloader": (
        "eval_data eval_dataloader eval_dataset eval_loader test_dataloader val_data val_dataloaders val_dataset "
        "val_loader valid_dataloader valid_loader validation_data validation_dataloader"
    ),
}

_STEPS = (
    "it counts in epochs: give `max_epochs`. For an epoch of N steps, give `train_dataloader` a "
    "torch.utils.data.RandomSampler with num_samples=N * batch_size"
)
_VALIDATION_STEPS = (
    "it validates after every `eval_stride` epochs. For an epoch of N steps, give `train_dataloader` a "
    "torch.utils.data.RandomSampler with num_samples=N * batch_size"
)
_WORKERS = "the launcher starts one worker per device: `minetorch-launch --nproc N train.py`"
_OF_LOADER = "it is an argument of the DataLoader that you give as `train_dataloader`"
_IN_CHECKPOINTS = {
    "every_minutes": "persist_minutes save_minutes",
    "every_steps": "persist_steps checkpoint_every checkpoint_interval save_every save_interval save_steps",
    "keep_best": "keep_best",
    "keep_every": "keep_every",
    "keep_every_steps": "keep_every_steps",
    "keep_last": "keep_last keep_checkpoints max_checkpoints max_to_keep save_total_limit save_top_k",
    "mode": "mode greater_is_better",
    "monitor": "monitor metric_for_best_model",
    "optimizer_options": "optimizer_options",
    "when_busy": "persist_policy",
}
ARGUMENT_ANSWERS = {
    _STEPS: "max_iter max_iterations max_iters max_steps num_iters num_steps total_steps train_iters train_steps",
    _VALIDATION_STEPS: "eval_interval eval_iters eval_steps eval_strategy evaluation_strategy val_check_interval",
    _WORKERS: "accelerator devices distributed gpus n_gpu nproc num_devices num_gpus num_nodes num_processes "
    "tpu_cores world_size",
    "it takes the worker's own device; MINETORCH_DEVICE=cpu keeps it on the CPU": "device no_cuda use_cpu",
    _OF_LOADER: "batch_size collate_fn data_collator dataloader_num_workers drop_last num_workers pin_memory sampler "
    "shuffle per_device_train_batch_size",
    "give each option by its name, such as `max_epochs`": "args cfg conf config hparams opt options training_args",
    "log with `trainer.logger`, and set levels and handlers on logging.getLogger('minetorch')": "logger loggers "
    "log_level verbose",
    "it shows its progress by itself; a hook at 'after_train_iteration_end' may log more": "enable_progress_bar "
    "log_every log_every_n_steps log_interval logging_steps progress_bar",
    "give `plugins` a minetorch.plugins.LRSchedule(scheduler)": "lr_scheduler lr_schedulers lr_scheduler_type "
    "scheduler schedulers warmup_steps",
    "give the learning rate and its like to the optimizer, and that as `optimizer`": "learning_rate lr momentum "
    "weight_decay",
    "let a hook at 'after_epoch_end' set trainer.metrics['name'], or see minetorch.plugins for `plugins`": (
        "compute_metrics evaluator metric metrics"
    ),
    "give `plugins` a minetorch.plugins.EarlyStopping(...)": "early_stopping early_stopping_patience patience",
    "wrap nothing: it makes its own DistributedDataParallel": "ddp fsdp deepspeed",
    "give `strategy=DDP(find_unused_parameters=True)`": "find_unused_parameters ddp_find_unused_parameters",
    "give `strategy='exact'`": "elastic",
    "give `strategy=Exact(virtual_shards=…)`": "virtual_shards",
    **{f"give `checkpoints=Checkpoints({option}=…)`": names for option, names in _IN_CHECKPOINTS.items()},
}

HOOKS = {
    "after_init": (
        "after_setup before_fit before_run before_train on_fit_start on_init_end on_train_begin on_train_start setup"
    ),
    "before_epoch_start": (
        "before_epoch before_train_epoch on_epoch_begin on_epoch_start on_train_epoch_begin on_train_epoch_start"
    ),
    "after_epoch_end": (
        "after_epoch after_train_epoch after_val_epoch after_validation on_epoch_end on_evaluate on_train_epoch_end "
        "on_validation_end on_validation_epoch_end on_eval_epoch_end training_epoch_end validation_epoch_end"
    ),
    "before_train_iteration_start": (
        "before_batch before_iter before_iteration before_step before_train_iter before_train_step on_batch_begin "
        "on_batch_start on_step_begin on_step_start on_train_batch_begin on_train_batch_start on_train_step_start"
    ),
    "after_train_iteration_end": (
        "after_batch after_iter after_iteration after_step after_train_iter after_train_step on_after_backward "
        "on_batch_end on_log on_step_end on_train_batch_end on_train_step_end training_step_end"
    ),
    "before_val_iteration_start": (
        "before_val_iter before_val_step on_eval_step_start on_validation_batch_start on_val_batch_start"
    ),
    "after_val_iteration_end": (
        "after_val_iter after_val_step on_eval_step_end on_prediction_step on_validation_batch_end on_val_batch_end "
        "validation_step_end"
    ),
    "before_checkpoint_persisted": "before_checkpoint before_save before_save_checkpoint on_save_checkpoint",
    "after_checkpoint_persisted": "after_checkpoint after_save after_save_checkpoint on_save",
    "before_quit": "after_fit after_run after_train before_exit on_fit_end on_train_end teardown",
}
_STEP = "`loss_func(trainer, data)` is called for each batch of training and validation, and returns the loss"
HOOK_ANSWERS = {
    _STEP: "compute_loss forward training_step validation_step test_step",
    "the Trainer is given an optimizer that is made": "configure_optimizers create_optimizer",
    "there is none between backward and the optimizer's step; `clip_grad_norm` clips there, and "
    "'after_train_iteration_end' comes after it": (
        "after_backward before_optimizer_step on_before_backward on_before_optimizer_step on_before_zero_grad "
        "on_optimizer_step on_pre_optimizer_step optimizer_step"
    ),
    "an object is saved with the run in `statable`, or as a plugin with state_dict and load_state_dict": (
        "on_load_checkpoint load_checkpoint"
    ),
}


def instead_of_argument(name: str, known: Iterable[str]) -> str:
    """What to give in the place of an argument that the Trainer does not have: the rest of a sentence about it."""
    return _rest(name, [*known], ARGUMENTS, ARGUMENT_ANSWERS)


def instead_of_hook_point(name: str, known: Iterable[str]) -> str:
    """As `instead_of_argument`, for a hook point that does not exist."""
    return _rest(name, [*known], HOOKS, HOOK_ANSWERS)


def ours(name: str) -> str | None:
    """The hook point that other trainers call `name`, if it is known."""
    return _look_up(HOOKS, name)


def _rest(name: str, known: list[str], names: Mapping[str, str], answers: Mapping[str, str]) -> str:
    if (own := _look_up(names, name)) is not None:
        return f"; Minetorch calls it {own!r}."
    if (answer := _look_up(answers, name)) is not None:
        return f": {answer}."
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f".{hint} Known are {', '.join(map(repr, known))}."


def _look_up(names: Mapping[str, str], name: str) -> str | None:
    return next((own for own, others in names.items() if name in others.split()), None)
