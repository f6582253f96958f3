"""A single process, or one copy of the model on each rank under torch's DDP."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import cycle
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from minetorch.checkpoint.model_names import ModelNames
from minetorch.data import Batch, RankLoader, share_out
from minetorch.distributed.world import World
from minetorch.errors import ConfigurationError
from minetorch.options.strategies import DDP
from minetorch.strategies.accelerated import Amp, placement
from minetorch.strategies.base import Counted, LossOf, Strategy
from minetorch.strategies.buckets import settle_buckets

_ALONE = nullcontext()


class DataParallel(Strategy):
    """Each rank computes the gradients of its own samples, and all ranks step with the mean."""

    def __init__(
        self,
        options: DDP,
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        amp: Amp,
        seed: int,
        split_batches: bool,
    ) -> None:
        """Check the arguments; see `Strategy`."""
        super().__init__(world, model, optimizer, amp)
        self._seed = seed
        self._split_batches = split_batches
        self._finds_unused = options.find_unused_parameters
        self._ddp: DistributedDataParallel | None = None
        self._exchanged: dict[int, str] = {}
        """The ids and names of the parameters whose gradients DDP exchanges, in DDP's order."""
        self._frozen: Iterator[tuple[str, nn.Parameter]] = iter(())
        """The model's other parameters. Each iteration checks one of them, in turn, which takes almost no time."""
        self._awaits_forward = False

    def place(self) -> None:
        """Move the model to the device. With several ranks, wrap it in DDP."""
        super().place()
        if self.world.size > 1:
            self._wrap(start_alike=True)

    def share_out(self, source: DataLoader[Any], *, training: bool) -> RankLoader:
        """Give each rank its own samples of each batch."""
        return share_out(
            source,
            self.world,
            seed=self._seed,
            split_batches=self._split_batches,
            training=training,
            place=placement(self.world.device),
        )

    # Gradients and losses.

    def start_epoch(self) -> None:
        """Adapt to parameters that hooks have added to the optimizer, frozen or thawed.

        Raises:
            ConfigurationError: a parameter requires a gradient only on some ranks. Every rank raises it.
        """
        super().start_epoch()
        if self._ddp is None:
            return
        trainable = self._trainable()
        self._check_trainable([*trainable.values()])
        changed = trainable.keys() != self._exchanged.keys()
        if self._finds_unused:  # then a parameter may be frozen and thawed in every step
            changed = not trainable.keys() <= self._exchanged.keys()
        if changed and trainable:
            self._wrap()

    def add_gradients(self, batch: Batch, loss_of: LossOf, *, epoch: int, accumulated: int, stepping: bool) -> Counted:
        """Do the forward and the backward of this rank's batch.

        Raises:
            ConfigurationError: with several workers: the loss function did not call `model`, a parameter was frozen
                or thawed since the start of the epoch, or the loss does not depend on a parameter.
        """
        counted = batch.counted
        # DDP computes the mean over ranks. A rank with fewer samples of the last batch must have a smaller weight.
        weight = counted * self.world.size / (batch.total * accumulated)
        with _ALONE if self._ddp is None else self._exchanging(self._ddp, stepping):
            try:
                loss = loss_of(batch.data)
            except RuntimeError as error:
                explained = self._explain_unused(error)
                if explained is None:
                    raise
                raise explained from None
            self._check_forward()
            self._backward(loss if weight == 1.0 else loss * weight)
        return Counted(loss.detach(), counted)

    def validation_loss(self, batch: Batch, loss_of: LossOf, sums: torch.Tensor, *, epoch: int) -> torch.Tensor:
        """Do the forward of this rank's batch."""
        loss = loss_of(batch.data).detach()
        sums[0].add_(loss, alpha=batch.counted)
        return loss

    def align_buffers(self) -> None:
        """Copy rank 0's buffers (BatchNorm's statistics) to every rank, before a checkpoint or a validation."""
        if self._ddp is None or not self._ddp.broadcast_buffers:
            return
        with torch.no_grad():
            for buffer in self.unwrapped_model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    # DDP.

    def _wrap(self, *, start_alike: bool = False) -> None:
        """Wrap the model in DDP, which exchanges the gradients of the parameters that require one now."""
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
        # DDP broadcasts the buffers in each forward, also in a validation and in a hook on one rank. There the ranks
        # do not run the same forwards, and the broadcast would never end. So only training forwards broadcast.
        ddp.require_forward_param_sync = False
        self.model = self._ddp = ddp
        self._exchanged = self._trainable()
        self._frozen = cycle([(name, p) for name, p in model.named_parameters() if not p.requires_grad])

    def _trainable(self) -> dict[int, str]:
        names = ModelNames(self.unwrapped_model)
        return {id(p): names.plain(name) for name, p in self.unwrapped_model.named_parameters() if p.requires_grad}

    @contextmanager
    def _exchanging(self, ddp: DistributedDataParallel, stepping: bool) -> Iterator[None]:
        """A context for a forward and a backward. DDP exchanges their gradients only if `stepping`."""
        with _ALONE if stepping else ddp.no_sync():
            ddp.require_forward_param_sync = True
            self._awaits_forward = stepping
            try:
                yield
            finally:
                ddp.require_forward_param_sync = self._awaits_forward = False

    def _forward_hook(self) -> Callable[..., None]:
        def called(*_: object) -> None:  # not a method: a copy of the model would then copy this object, too
            self._awaits_forward = False

        return called

    def _check_forward(self) -> None:
        """Check, between forward and backward, that DDP will average the gradients of this backward."""
        if self._awaits_forward:
            raise ConfigurationError(
                f"loss_func did not call trainer.model. With {self.world.size} workers, gradients are averaged only "
                "through trainer.model, so each worker would train a model of its own. Write trainer.model(…) in "
                "loss_func, not the script's own model(…) or trainer.unwrapped_model(…)."
            )
        name, parameter = next(self._frozen, ("", None))
        if parameter is not None and parameter.requires_grad:
            raise _changed_in_epoch(ModelNames(self.unwrapped_model).plain(name), "requires")

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

    def _explain_unused(self, error: RuntimeError) -> ConfigurationError | None:
        """Explain DDP's error about parameters without a gradient, in the Trainer's terms; None for another error."""
        found = re.search(r"Parameter indices which did not receive grad for rank \d+: ([\d ]+)", str(error))
        if found is None:
            return None
        exchanged, trainable = [*self._exchanged.values()], self._trainable().values()
        unused = [exchanged[int(index)] for index in found[1].split()]
        frozen = next((name for name in unused if name not in trainable), None)
        if frozen is not None:
            return _changed_in_epoch(frozen, "does not require")
        names = ", ".join(unused)
        return ConfigurationError(
            f"The loss does not depend on these parameters: {names}. With several workers every trainable parameter "
            "must have a gradient in every step. Freeze those that are not used: parameter.requires_grad_(False). "
            "For those that are used at times, give the Trainer strategy=DDP(find_unused_parameters=True), which "
            "looks for them in every step, or make them part of every loss: loss + 0 * parameter.sum()."
        )


def _changed_in_epoch(name: str, requires: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name} {requires} a gradient since the middle of an epoch. With several workers, gradients are averaged "
        "for the parameters that require one when the epoch starts. Freeze and thaw parameters in a hook at "
        "'before_epoch_start', or before the Trainer is made."
    )
