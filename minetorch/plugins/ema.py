"""Keeps an average of the weights over the steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from minetorch.checkpoint.model_names import ModelNames, without_compile
from minetorch.context import TrainerState
from minetorch.errors import CheckpointMismatchError, ConfigurationError
from minetorch.plugins.monitoring import check_count


class EMA:
    """Keeps an exponential moving average of the model's weights, and validates with it.

    ```python
    ema = EMA(decay=0.999)
    Trainer(..., plugins=[ema])
    with ema.swapped():  # in a hook: the model has the averaged weights
        ...
    model.load_state_dict(minetorch.load("runs/default")["plugins"]["EMA"]["average"])
    ```

    After each optimizer step, `average = decay * average + (1 - decay) * weight`. Floating-point buffers, such as
    BatchNorm's statistics, are averaged in the same way, and other buffers copied. Weights of half precision are
    averaged in float32, since a step of 1 - decay would be rounded away. The average is in the checkpoint under the
    keys of the model's own state.

    `val_loss` is the averaged weights', unless `validate=False`; so `best` is the best average.
    """

    def __init__(self, decay: float = 0.999, *, every: int = 1, warmup: bool = True, validate: bool = True) -> None:
        """Average from the first step on, or from where the checkpoint was.

        Args:
            decay: the share of the average that each update keeps, from 0 to below 1.
            every: optimizer steps from one update to the next.
            warmup: begin with a lower decay, `(1 + n) / (10 + n)` at the n-th update, so that the average is not held
                back by the initial weights.
            validate: run validation with the average in place of the weights.

        Raises:
            ConfigurationError: an argument is wrong.
        """
        if not 0 <= decay < 1:
            raise ConfigurationError(f"EMA: decay must be from 0 to below 1; {decay!r} was given.")
        check_count("EMA", "every", every)
        self.decay = decay
        self.every = every
        self.warmup = warmup
        self.validate = validate
        self.updates = 0
        """Updates of the average so far."""
        self._average: dict[str, torch.Tensor] = {}
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._stepped = 0
        self._is_swapped = False
        self._trainer: TrainerState | None = None

    def after_init(self, trainer: TrainerState) -> None:
        """Begin with the weights as they are."""
        self._trainer = trainer
        self._stepped = trainer.progress.step
        copies: dict[int, torch.Tensor] = {}  # tied weights have one average
        for name, tensor in _tensors(trainer).items():
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor.detach().to(_dtype(tensor), copy=True)
                self._pairs.append((copies[id(tensor)], tensor))
            self._average[name] = copies[id(tensor)]
        if self.validate:
            trainer.around_validation.append(self._validating)

    def after_train_iteration_end(self, trainer: TrainerState) -> None:
        """Update the average after an optimizer step."""
        step = trainer.progress.step
        if step == self._stepped:
            return
        self._stepped = step
        if step % self.every == 0 and trainer.strategy.has_stepped:
            self._update()

    def before_checkpoint_persisted(self, trainer: TrainerState) -> None:
        """Refuse to save the average for the weights."""
        if self._is_swapped:
            raise ConfigurationError(
                "A checkpoint was to be saved within EMA.swapped(), where the model's weights are the average: the run "
                "would go on from them. Save it before or after."
            )

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """A context in which the model has the averaged weights and buffers, in place. On one rank or on all.

        Raises:
            ConfigurationError: it is one already, or the Trainer has not been made.
        """
        if self._trainer is None or self._is_swapped:
            state = "not part of a Trainer yet" if self._trainer is None else "swapped already"
            raise ConfigurationError(f"EMA.swapped(): this EMA is {state}.")
        # By way of `data`: who watches for changes would see two, though the weights come back as they were.
        own = [tensor.data.clone() for _, tensor in self._pairs]
        self._is_swapped = True
        try:
            for average, tensor in self._pairs:
                tensor.data.copy_(average)
            yield
        finally:
            for (_, tensor), saved in zip(self._pairs, own, strict=True):
                tensor.data.copy_(saved)
            self._is_swapped = False

    @contextmanager
    def _validating(self) -> Iterator[None]:
        """Validation with the average: rank 0's on every rank, as far as the ranks' buffers differ."""
        assert self._trainer is not None
        if self._trainer.world_size > 1:
            parameters = {id(parameter) for parameter in self._trainer.unwrapped_model.parameters()}
            for average, tensor in self._pairs:
                if id(tensor) not in parameters:
                    torch.distributed.broadcast(average, src=0)
        with self.swapped():
            yield

    @torch.no_grad()
    def _update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        self.updates += 1
        alike: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []
        for average, tensor in self._pairs:
            if not average.is_floating_point() and not average.is_complex():
                average.copy_(tensor)
            elif average.dtype == tensor.dtype:
                alike[0].append(average)
                alike[1].append(tensor)
            else:
                average.lerp_(tensor.to(average.dtype), 1 - decay)
        if alike[0]:
            torch._foreach_lerp_(alike[0], alike[1], 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """The average, by the keys of the model's own state, and the count of updates."""
        return {"average": dict(self._average), "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that `state_dict` returned.

        Raises:
            CheckpointMismatchError: it is another model's.
        """
        loaded: Mapping[str, torch.Tensor] = state_dict["average"]
        if not loaded.keys() >= self._average.keys():
            loaded = without_compile(loaded)
        for name, average in self._average.items():
            if name not in loaded or loaded[name].shape != average.shape:
                raise CheckpointMismatchError(
                    f"The checkpoint's EMA does not fit this model: {name!r} is missing in it, or of another shape. "
                    "Use the model it was made with, another `code`, or resume=False to start afresh."
                )
            average.copy_(loaded[name])
        self.updates = state_dict["updates"]


def _tensors(trainer: TrainerState) -> dict[str, torch.Tensor]:
    """The model's parameters and the buffers that its state has, themselves and not views of them."""
    names = ModelNames(trainer.unwrapped_model)
    own = names.parameters() | names.buffers()
    return {name: own[name] for name in names.state_dict() if name in own}


def _dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype
