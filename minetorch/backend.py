"""Device, mixed precision and gradients' exchange. The only file that imports accelerate.

Of accelerate, the Trainer takes the `Accelerator` and its `prepare_model`, without its DDP, which is made again where
a hook has thawed parameters. Its optimizer wrapper and loaders
cost more a step than all of the Trainer's own work, so the few lines that they would do stand here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import cycle
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from minetorch.errors import CheckpointMismatchError, ConfigurationError
from minetorch.model_names import ModelNames
from minetorch.optimizer_state import OptimizerState
from minetorch.world import World

Amp = Literal[False, "bf16", "fp16"]

_UNFIT = RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError
"""What torch's own classes raise for another's state."""

_ALONE = nullcontext()


class Backend:
    """A model and its optimizer on this worker's device, in step with the other workers'."""

    def __init__(
        self,
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        amp: Amp,
        *,
        exchanges: bool = True,
        find_unused_parameters: bool = False,
    ) -> None:
        """Move the model to the device and wrap it for the world.

        Args:
            world: this worker's place.
            model: the user's, in place.
            optimizer: of its parameters.
            amp: mixed precision of the forward.
            exchanges: whether DDP is to sum the gradients of all ranks; else that is the caller's.
            find_unused_parameters: have DDP look in every step for the parameters that the loss does not depend on.

        Raises:
            ConfigurationError: fp16 on a CPU, bf16 where the device has none, lazy parameters.
        """
        if amp == "fp16" and world.device.type == "cpu":
            raise ConfigurationError('amp="fp16" needs a GPU. On a CPU use amp="bf16", or amp=False.')
        lazy = next((name for name, parameter in model.named_parameters() if is_lazy(parameter)), None)
        if lazy is not None:
            raise ConfigurationError(
                f"The model's parameter {lazy} has no shape before the first batch, so it can be neither saved nor "
                "sent to other workers. Call the model once with a batch before the Trainer is made."
            )
        self.world = world
        self.optimizer = optimizer
        self.optimizer_state = OptimizerState(model, optimizer)
        self.unwrapped_model = model
        self.accelerator = _accelerator(world, amp)
        _forget_precision(model)
        self.model: nn.Module = self.accelerator.prepare_model(model, evaluation_mode=True)
        self._finds_unused = find_unused_parameters
        self._ddp: DistributedDataParallel | None = None
        self._exchanged: dict[int, str] = {}
        """The parameters whose gradients DDP exchanges, in its order: their ids and names."""
        self._frozen: Iterator[tuple[str, nn.Parameter]] = iter(())
        """The model's other parameters, in turn: a look at one of them costs an iteration nothing."""
        if exchanges and world.size > 1:
            self._wrap(start_alike=True)
        elif world.size > 1:
            self._start_alike()
        self._scaler = cast("torch.amp.GradScaler | None", self.accelerator.scaler)
        self._norm_before_clipping: torch.Tensor | None = None
        self._others: list[nn.Parameter] = []
        self._has_stepped = False
        self._found_inf: torch.Tensor | None = None
        self._awaits_forward = False

    def _wrap(self, *, start_alike: bool = False) -> None:
        """Put DDP around the model, to exchange the gradients of the parameters that require one now."""
        model, device = self.unwrapped_model, self.world.device
        ddp = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            init_sync=start_alike,
            find_unused_parameters=self._finds_unused,
        )
        ddp.training = self.model.training
        if not self._finds_unused:  # with it, DDP keeps the buckets that it begins with
            settle_buckets(ddp)
        ddp.register_forward_pre_hook(self._forward_hook())
        # DDP broadcasts the buffers at a forward, also in validation and in a hook on one rank. There the ranks do
        # not keep step, and the broadcast would wait for ever. So it is on for the forwards of training alone.
        ddp.require_forward_param_sync = False
        self.model = self._ddp = ddp
        self._exchanged = self._trainable()
        self._frozen = cycle([(name, p) for name, p in model.named_parameters() if not p.requires_grad])

    def _trainable(self) -> dict[int, str]:
        names = ModelNames(self.unwrapped_model)
        return {id(p): names.plain(name) for name, p in self.unwrapped_model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def _start_alike(self) -> None:
        """Give every rank rank 0's weights, as DDP does when it is made."""
        for tensor in (*self.unwrapped_model.parameters(), *self.unwrapped_model.buffers()):
            torch.distributed.broadcast(tensor, src=0)

    def exchanging(self, stepping: bool) -> AbstractContextManager[Any]:
        """A context for a forward and backward, whose gradients stay on this rank for now unless it is `stepping`."""
        return _ALONE if self._ddp is None else self._exchange(self._ddp, stepping)

    @contextmanager
    def _exchange(self, ddp: DistributedDataParallel, stepping: bool) -> Iterator[None]:
        with _ALONE if stepping else ddp.no_sync():
            ddp.require_forward_param_sync = True
            self._awaits_forward = stepping
            try:
                yield
            finally:
                ddp.require_forward_param_sync = self._awaits_forward = False

    def _forward_hook(self) -> Callable[..., None]:
        def called(*_: object) -> None:  # no method: a copy of the model would copy all of this object with it
            self._awaits_forward = False

        return called

    @contextmanager
    def on_this_rank(self) -> Iterator[None]:
        """A context in which `model` is the user's own: what is done with it is no collective, not even at first."""
        wrapped, self.model = self.model, self.unwrapped_model
        try:
            yield
        finally:
            self.model = wrapped

    def backward(self, loss: torch.Tensor) -> None:
        """Add the loss's gradients to the parameters'.

        Raises:
            ConfigurationError: with several workers, the loss was computed without a call of `model`, or a parameter
                was thawed since the epoch's start.
        """
        if self._awaits_forward:
            raise ConfigurationError(
                f"loss_func did not call trainer.model. With {self.world.size} workers, gradients are averaged only "
                "through trainer.model, so each worker would train a model of its own. Write trainer.model(…) in "
                "loss_func, not the script's own model(…) or trainer.unwrapped_model(…)."
            )
        name, parameter = next(self._frozen, ("", None))
        if parameter is not None and parameter.requires_grad:
            raise self._changed_in_epoch(ModelNames(self.unwrapped_model).plain(name), "requires")
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def step(self, clip_grad_norm: float | None, scale: float = 1.0) -> None:
        """Take an optimizer step and clear the gradients.

        Args:
            clip_grad_norm: upper limit of the gradients' total 2-norm, or None.
            scale: what the gradients are multiplied by first.
        """
        if clip_grad_norm is not None or scale != 1.0:
            self._rescale(clip_grad_norm, scale)
        if self._scaler is None:
            self.optimizer.step()
        else:
            self._has_stepped = False
            with self.optimizer.register_step_post_hook(self._after_step):
                self._scaler.step(self.optimizer)
            self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _rescale(self, clip_grad_norm: float | None, scale: float) -> None:
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        parameters = self._optimized()
        gradients = [p.grad for p in parameters if p.grad is not None]
        if scale != 1.0 and gradients:
            torch._foreach_mul_(gradients, scale)
        if clip_grad_norm is None:
            return
        try:
            self._norm_before_clipping = nn.utils.clip_grad_norm_(parameters, clip_grad_norm)
        except NotImplementedError:
            if not any(gradient.is_sparse for gradient in gradients):
                raise
            raise ConfigurationError(
                f"clip_grad_norm={clip_grad_norm} cannot limit sparse gradients, as nn.Embedding(…, sparse=True) has "
                "them. Use dense ones (sparse=False), or leave out clip_grad_norm."
            ) from None

    def _optimized(self) -> list[nn.Parameter]:
        """The optimizer's parameters, also those of groups that a hook has added: to scale, clip and zero."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def start_epoch(self) -> None:
        """Follow what hooks have changed: the optimizer's parameters, and those that require a gradient.

        Every rank calls it.

        Raises:
            ConfigurationError: a parameter requires a gradient on some ranks only. Every rank raises it.
        """
        optimized = {id(parameter) for parameter in self._optimized()}
        self._others = [p for p in self.unwrapped_model.parameters() if id(p) not in optimized]
        if self._ddp is None:
            return
        trainable = self._trainable()
        self._check_trainable([*trainable.values()])
        changed = trainable.keys() != self._exchanged.keys()
        if self._finds_unused:  # then a parameter may be frozen and thawed in every step
            changed = not trainable.keys() <= self._exchanged.keys()
        if changed and trainable:
            self._wrap()

    def _check_trainable(self, names: list[str]) -> None:
        by_rank = list(map(set, self.world.gather(names)))
        for rank, own in enumerate(by_rank):
            differing = min(own ^ by_rank[0], default=None)
            if differing is not None:
                here, there = (0, rank) if differing in by_rank[0] else (rank, 0)
                raise ConfigurationError(
                    f"The ranks do not train the same parameters: {differing} requires a gradient on rank {here}, and "
                    f"not on rank {there}. Freeze and thaw parameters on every rank, not in a hook of rank 0 alone."
                )

    def forget_other_gradients(self) -> None:
        """Clear the gradients of parameters that are not in the optimizer, before the first iteration of a step.

        No checkpoint holds gradients, so none may outlive its step. Until the next step a hook can use them.
        """
        for parameter in self._others:
            parameter.grad = None

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._has_stepped = True
        # The scaler gives it to an optimizer that leaves out the step by itself, as fused ones do.
        self._found_inf = getattr(optimizer, "found_inf", None)

    @property
    def has_stepped(self) -> bool:
        """Whether the newest `step` has changed the parameters: with fp16 it does not where gradients overflow."""
        if self._scaler is None:
            return True
        return self._has_stepped and not (self._found_inf is not None and bool(self._found_inf))

    @property
    def overflows(self) -> bool:
        """In a hook of the optimizer's step: whether the optimizer is going to leave this step out by itself."""
        found_inf: torch.Tensor | None = getattr(self.optimizer, "found_inf", None)
        return found_inf is not None and bool(found_inf)

    def gradient_norm(self) -> torch.Tensor:
        """The gradients' total 2-norm before clipping, on the device: for hooks of the optimizer's step.

        Every rank has the same, since the gradients are the world's mean.
        """
        if self._norm_before_clipping is not None:
            return self._norm_before_clipping
        # The optimizer's list: walking the model's modules would take longer than the norm of a small one.
        gradients = [_values(p.grad) for p in self._optimized() if p.grad is not None]
        if not gradients:
            return torch.zeros((), device=self.world.device)
        # `nn.utils.get_total_norm` takes twice as long, to sort tensors by device and dtype.
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        # A fused optimizer unscales the gradients by itself, in its step.
        scale: torch.Tensor | None = getattr(self.optimizer, "grad_scale", None)
        return norm if scale is None else norm / scale

    def explain_unused(self, error: RuntimeError) -> ConfigurationError | None:
        """DDP's error about parameters without a gradient in words that fit the Trainer; None for any other error."""
        found = re.search(r"Parameter indices which did not receive grad for rank \d+: ([\d ]+)", str(error))
        if found is None:
            return None
        exchanged, trainable = [*self._exchanged.values()], self._trainable().values()
        unused = [exchanged[int(index)] for index in found[1].split()]
        frozen = next((name for name in unused if name not in trainable), None)
        if frozen is not None:
            return self._changed_in_epoch(frozen, "does not require")
        names = ", ".join(unused)
        return ConfigurationError(
            f"The loss does not depend on these parameters: {names}. With several workers every trainable parameter "
            "must have a gradient in every step. Freeze those that are not used: parameter.requires_grad_(False). "
            "For those that are used at times, give the Trainer find_unused_parameters=True, which looks for them in "
            "every step, or make them part of every loss: loss + 0 * parameter.sum()."
        )

    @staticmethod
    def _changed_in_epoch(name: str, requires: str) -> ConfigurationError:
        return ConfigurationError(
            f"{name} {requires} a gradient since the middle of an epoch. With several workers, gradients are averaged "
            "for the parameters that require one when the epoch starts. Freeze and thaw parameters in a hook at "
            "'before_epoch_start', or before the Trainer is made."
        )

    def align_buffers(self) -> None:
        """Give every rank rank 0's buffers (BatchNorm's statistics), as a checkpoint and validation need them."""
        if self._ddp is None or not self._ddp.broadcast_buffers:
            return
        with torch.no_grad():
            for buffer in self.unwrapped_model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def state_dict(self) -> dict[str, Any]:
        """The model's, the optimizer's and the gradient scaler's state."""
        state = {"state_dict": ModelNames(self.unwrapped_model).state_dict(), **self.optimizer_state.state_dict()}
        if self._scaler is not None:
            state["scaler"] = self._scaler.state_dict()
        return state

    def weights(self) -> dict[str, torch.Tensor]:
        """The tensors in the model's state, themselves, by their names in a checkpoint."""
        state = ModelNames(self.unwrapped_model).state_dict()
        return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}

    def load_state_dict(self, state: Mapping[str, Any], *, prefer_script: bool = False) -> list[str]:
        """Take over what `state_dict` returned.

        Args:
            state: of a checkpoint.
            prefer_script: use the optimizer's options that the script gives; see `OptimizerState.load`.

        Returns:
            The options of the optimizer for which the script gives another value, in words.

        Raises:
            CheckpointMismatchError: it is another model's or optimizer's state.
        """
        try:
            ModelNames(self.unwrapped_model).load_state_dict(state["state_dict"])
        except _UNFIT as error:
            raise CheckpointMismatchError(
                f"The checkpoint does not fit this model: {error}\n"
                "Use the model it was made with, another `code`, or resume=False to start afresh."
            ) from None
        try:
            differences = self.optimizer_state.load(state, prefer_script=prefer_script)
        except _UNFIT as error:
            raise CheckpointMismatchError(
                f"The checkpoint does not fit this {type(self.optimizer).__name__}: {error}. "
                "Use the optimizer it was made with, another `code`, or resume=False to start afresh."
            ) from None
        if self._scaler is not None and "scaler" in state:
            self._scaler.load_state_dict(state["scaler"])
        return differences


def settle_buckets(ddp: DistributedDataParallel) -> None:
    """Give a model that has not been called yet the gradient buckets that it keeps: its parameters', last ones first.

    DDP's first backward has buckets of its own, and the order in which gradients came then makes those of all later
    ones. In which order gloo and NCCL add the ranks' gradients up depends on a gradient's place in its bucket, so a
    resumed run of three or more workers would differ in its first step from one that was never stopped. Here each
    start makes the same first backward, of zeros, which costs one exchange and nothing after it.
    """
    sparse = {
        id(module.weight)
        for module in ddp.module.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
    }
    parameters = [
        parameter
        for name, parameter in ddp.module.named_parameters()
        if parameter.requires_grad and name not in ddp.parameters_to_ignore
    ]
    # Gradients and hooks of the user's: neither is meant for zeros. Autograd has the hooks' dicts, not the attributes.
    gradients = [parameter.grad for parameter in parameters]
    hooks = [
        (held, dict(held))
        for parameter in parameters
        for held in (parameter._backward_hooks, parameter._post_accumulate_grad_hooks)
        if held
    ]
    for parameter in parameters:
        parameter.grad = None
    for held, _ in hooks:
        held.clear()
    ddp.reducer.prepare_for_forward()
    ddp.reducer.prepare_for_backward([])
    for parameter in reversed(parameters):
        layout = torch.sparse_coo if id(parameter) in sparse else torch.strided
        parameter.backward(torch.zeros_like(parameter, layout=layout))
    ddp.reducer._rebuild_buckets()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    for held, content in hooks:
        held.update(content)


def _forget_precision(model: nn.Module) -> None:
    """Undo what accelerate has done to the model for an earlier Trainer, whose `amp` would stay in force."""
    attributes = vars(model)
    attributes.pop("_is_accelerate_prepared", None)
    forward = attributes.pop("_original_forward", None)
    if forward is not None:
        model.forward = forward


def _values(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def placement(device: torch.device) -> Callable[[Any], Any] | None:
    """What moves a batch (tensors in lists, dicts, tuples) to the device; None for a CPU, where it is already."""
    if device.type == "cpu":
        return None
    return lambda data: send_to_device(data, device, non_blocking=True)


def _accelerator(world: World, amp: Amp) -> Accelerator:
    cpu = world.device.type == "cpu"
    precision = amp or "no"
    shared = AcceleratorState._shared_state
    if shared and (shared.get("_mixed_precision") != precision or shared.get("_cpu") != cpu):
        # accelerate keeps one state a process and refuses another precision; a notebook has many Trainers.
        AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with _environment_for_accelerate(world):
            return Accelerator(cpu=cpu, mixed_precision=precision, step_scheduler_with_optimizer=False)
    except ValueError as error:
        raise ConfigurationError(f"amp={amp!r} cannot be had on {world.device}: {error}") from error


@contextmanager
def _environment_for_accelerate(world: World) -> Iterator[None]:
    """One worker needs no process group, though a launcher set LOCAL_RANK; nor other threads than torch has."""
    names = ("LOCAL_RANK", "OMP_NUM_THREADS")
    saved = {name: os.environ.get(name) for name in names}
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    if world.size == 1:
        os.environ.pop("LOCAL_RANK", None)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
