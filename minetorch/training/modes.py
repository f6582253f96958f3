"""Train mode during training, eval mode otherwise, and the user's own choice for single modules."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import nn


class Modes:
    """Switches a model between train mode and eval mode.

    A module that the user has put into eval mode, such as a frozen backbone, stays in eval mode during training.
    """

    def __init__(self, model: nn.Module, wrapped: Callable[[], nn.Module], logger: logging.Logger) -> None:
        """Change nothing yet.

        Args:
            model: the user's model.
            wrapped: returns the model to call: the user's model, or its DDP wrapper.
            logger: for a line about modules that are in eval mode at the start.
        """
        self._model = model
        self._wrapped = wrapped
        self._logger = logger
        self._kept: list[nn.Module] | None = None
        """While the whole model is in eval mode: the modules that stay in eval mode when training continues."""
        self._ends_in_eval = False

    def begin(self) -> None:
        """Remember which modules the user has put into eval mode, and put the whole model into eval mode.

        If all modules are in eval mode, as in a pretrained model after loading, `train` puts all into train mode.
        """
        in_eval = {name for name, module in self._model.named_modules() if not module.training}
        self._ends_in_eval = len(in_eval) == sum(1 for _ in self._model.modules())
        self.evaluate()
        if self._ends_in_eval:
            self._kept = []
            self._logger.info(
                "The whole model is in eval mode, so the Trainer puts it into train mode. To train in eval mode, call "
                "trainer.model.eval() in a hook at 'before_epoch_start'."
            )
        elif in_eval:
            outer = [name for name in sorted(in_eval) if not name or name.rpartition(".")[0] not in in_eval]
            named = ", ".join(name or "the model itself" for name in outer[:3])
            more = f" and {len(outer) - 3} more" if len(outer) > 3 else ""
            self._logger.info("These modules are in eval mode and stay in it during training: %s%s.", named, more)

    def evaluate(self) -> None:
        """Put the whole model into eval mode. A second call changes nothing."""
        if self._kept is None:
            self._kept = [module for module in self._model.modules() if not module.training]
        self._wrapped().eval()

    def train(self) -> None:
        """Restore the modes from before `evaluate`. A second call changes nothing."""
        if self._kept is None:
            return
        # Call train() instead of setting flags: a model may override it to freeze a part, or to prepare its weights.
        self._wrapped().train()
        for module in self._kept:
            module.training = False
        self._kept = None

    def end(self) -> None:
        """Restore the user's modes: those from before `begin`, with the changes that hooks have made since."""
        self.train()
        if self._ends_in_eval:
            self._wrapped().eval()
