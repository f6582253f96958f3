"""The base of all strategies: it places the model, clips, steps, and saves and restores the state."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader

from minetorch.checkpoint.model_names import ModelNames
from minetorch.data import Batch, RankLoader
from minetorch.distributed.world import World
from minetorch.errors import CheckpointMismatchError, ConfigurationError
from minetorch.strategies.accelerated import Amp, forget_precision, make_accelerator
from minetorch.strategies.optimizer_state import OptimizerState

if TYPE_CHECKING:
    from accelerate import Accelerator

_UNFIT = RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError
"""The errors that torch's own classes raise for a state that does not fit."""

LossOf = Callable[[Any], torch.Tensor]
"""Computes the forward of a batch's data, and returns the mean loss."""


class Counted(NamedTuple):
    """A mean loss, and the number of samples that it counts for."""

    loss: torch.Tensor
    samples: int


class Strategy(ABC):
    """How a model trains on this worker's device, in step with the other workers.

    The Trainer expects that every rank holds the whole model. Before a save, `Replicas` compares the weights of all
    ranks, and only rank 0 saves its state (`Persistence`). The check `check_objects` refuses sharded models. A
    strategy that shards the model must change all three.
    """

    shares_generators: ClassVar[bool] = False
    """Whether all ranks have the same states of the random generators between iterations."""

    def __init__(self, world: World, model: nn.Module, optimizer: torch.optim.Optimizer, amp: Amp) -> None:
        """Check the arguments, without waiting for other workers. `place` does the rest.

        Args:
            world: this worker's place among all workers.
            model: the user's model. `place` moves it to the device in place.
            optimizer: the optimizer of the model's parameters.
            amp: mixed precision of the forward.

        Raises:
            ConfigurationError: fp16 on a CPU, or lazy parameters.
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
        self.unwrapped_model = self.model = model
        self.accelerator: Accelerator
        self.optimizer_state: OptimizerState
        self._amp = amp
        self._scaler: torch.amp.GradScaler | None = None
        self._norm_before_clipping: torch.Tensor | None = None
        self._others: list[nn.Parameter] = []
        self._has_stepped = False
        self._found_inf: torch.Tensor | None = None

    def place(self) -> None:
        """Move the model to the device, and prepare it to train on all ranks. Every rank calls it.

        Raises:
            ConfigurationError: the device does not support this precision.
        """
        self.optimizer_state = OptimizerState(self.unwrapped_model, self.optimizer)
        self.accelerator = make_accelerator(self.world, self._amp)
        forget_precision(self.unwrapped_model)
        self.model = self.accelerator.prepare_model(self.unwrapped_model, evaluation_mode=True)
        self._scaler = cast("torch.amp.GradScaler | None", self.accelerator.scaler)

    def close(self) -> None:  # noqa: B027 - most strategies change no setting
        """Restore the settings of the process that `place` has changed."""

    # Data.

    @abstractmethod
    def share_out(self, source: DataLoader[Any], *, training: bool) -> RankLoader:
        """Make this rank's loader from the user's loader. The user's loader does not change.

        Raises:
            ConfigurationError: the loader cannot be shared out.
        """

    # Gradients and losses.

    def start_epoch(self) -> None:
        """Adapt to parameters that hooks have added to the optimizer, frozen or thawed. Every rank calls it."""
        optimized = {id(parameter) for parameter in self._optimized()}
        self._others = [p for p in self.unwrapped_model.parameters() if id(p) not in optimized]

    def forget_other_gradients(self) -> None:
        """Clear the gradients of parameters that are not in the optimizer, before the first iteration of a step.

        Checkpoints hold no gradients, so a gradient must not be used after its step. Until the next step, hooks can
        read it.
        """
        for parameter in self._others:
            parameter.grad = None

    @abstractmethod
    def add_gradients(self, batch: Batch, loss_of: LossOf, *, epoch: int, accumulated: int, stepping: bool) -> Counted:
        """Do the forward and the backward of an iteration. Every rank calls it.

        Args:
            batch: this rank's batch.
            loss_of: does the forward.
            epoch: the current epoch, from 1.
            accumulated: the number of iterations in a step. The gradients are divided by it.
            stepping: whether a step follows. Then the gradients must be the mean over all ranks.
        """

    @abstractmethod
    def validation_loss(self, batch: Batch, loss_of: LossOf, sums: torch.Tensor, *, epoch: int) -> torch.Tensor:
        """Do the forward of a batch of validation data.

        Args:
            batch: this rank's batch.
            loss_of: does the forward.
            sums: shape (validation_parts,). Each loss, times its number of samples, is added to it.
            epoch: the current epoch, from 1.

        Returns:
            The mean loss over this rank's samples.
        """

    @property
    def validation_parts(self) -> int:
        """The number of partial sums of the validation loss."""
        return 1

    def align_buffers(self) -> None:  # noqa: B027 - with some strategies, buffers never differ
        """Give every rank the same buffers (BatchNorm's statistics), before a checkpoint or a validation."""

    def _backward(self, loss: torch.Tensor) -> None:
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    @torch.no_grad()
    def _start_alike(self) -> None:
        """Give every rank rank 0's weights."""
        for tensor in (*self.unwrapped_model.parameters(), *self.unwrapped_model.buffers()):
            torch.distributed.broadcast(tensor, src=0)

    @contextmanager
    def on_this_rank(self) -> Iterator[None]:
        """A context in which `model` is the user's own model, so that a call of it runs no collective."""
        wrapped, self.model = self.model, self.unwrapped_model
        try:
            yield
        finally:
            self.model = wrapped

    # The optimizer's step.

    def step(self, clip_grad_norm: float | None, scale: float = 1.0) -> None:
        """Take an optimizer step and clear the gradients.

        Args:
            clip_grad_norm: upper limit of the gradients' total 2-norm, or None.
            scale: a factor for the gradients, applied before the clipping.
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
        """All parameters of the optimizer, with those in groups that a hook has added."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self._has_stepped = True
        # The scaler sets it on optimizers that skip a step themselves, such as fused ones.
        self._found_inf = getattr(optimizer, "found_inf", None)

    @property
    def has_stepped(self) -> bool:
        """Whether the newest `step` changed the parameters. With fp16, a step with overflowed gradients does not."""
        if self._scaler is None:
            return True
        return self._has_stepped and not (self._found_inf is not None and bool(self._found_inf))

    @property
    def overflows(self) -> bool:
        """Whether the optimizer will skip this step itself, for hooks of the optimizer's step."""
        found_inf: torch.Tensor | None = getattr(self.optimizer, "found_inf", None)
        return found_inf is not None and bool(found_inf)

    def gradient_norm(self) -> torch.Tensor:
        """The gradients' total 2-norm before clipping, on the device, for hooks of the optimizer's step.

        All ranks have the same norm, because the gradients are the mean over all ranks.
        """
        if self._norm_before_clipping is not None:
            return self._norm_before_clipping
        # A walk over the model's modules would take longer than the norm of a small model.
        gradients = [_values(p.grad) for p in self._optimized() if p.grad is not None]
        if not gradients:
            return torch.zeros((), device=self.world.device)
        # `nn.utils.get_total_norm` takes twice as long, because it sorts tensors by device and dtype.
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        # A fused optimizer unscales the gradients in its step.
        scale: torch.Tensor | None = getattr(self.optimizer, "grad_scale", None)
        return norm if scale is None else norm / scale

    # State.

    def state_dict(self) -> dict[str, Any]:
        """The state of the model, the optimizer and the gradient scaler."""
        state = {"state_dict": ModelNames(self.unwrapped_model).state_dict(), **self.optimizer_state.state_dict()}
        if self._scaler is not None:
            state["scaler"] = self._scaler.state_dict()
        return state

    def weights(self) -> dict[str, torch.Tensor]:
        """The tensors of the model's state (not copies), by their names in a checkpoint."""
        state = ModelNames(self.unwrapped_model).state_dict()
        return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}

    def check_state(  # noqa: B027 - most strategies accept any state
        self, state: Mapping[str, Any], path: str, logger: logging.Logger
    ) -> None:
        """Check, before anything is loaded, that training can continue from a checkpoint's state.

        Args:
            state: the checkpoint's state.
            path: the checkpoint's path, for messages.
            logger: receives warnings.

        Raises:
            CheckpointMismatchError: training cannot continue from it.
        """

    def load_state_dict(self, state: Mapping[str, Any], *, prefer_script: bool = False) -> list[str]:
        """Restore a state that `state_dict` returned.

        Args:
            state: the checkpoint's state.
            prefer_script: use the optimizer's options that the script gives; see `OptimizerState.load`.

        Returns:
            Each option of the optimizer that has another value in the script, in words.

        Raises:
            CheckpointMismatchError: the state does not fit this model or this optimizer.
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


def _values(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient
