"""What the model returned, for plugins that look at it without a forward of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from minetorch.errors import ConfigurationError


class Outputs:
    """Keeps the model's newest output, detached, from `watch` to `ignore`."""

    def __init__(self, who: str) -> None:
        """Watch nothing yet.

        Args:
            who: the plugin that looks, for messages.
        """
        self._who = who
        self._output: Any = None
        self._handle: Any = None

    def watch(self, model: nn.Module) -> None:
        """Keep what a forward of `model` returns."""
        self._handle = model.register_forward_hook(self._keep)

    def ignore(self) -> None:
        """Keep nothing any more."""
        if self._handle is not None:
            self._handle.remove()
        self._output = self._handle = None

    def take(self) -> Any:
        """The output of the newest forward, which is then forgotten.

        Raises:
            ConfigurationError: there was no forward since the last call.
        """
        output, self._output = self._output, None
        if output is None:
            raise ConfigurationError(
                f"{self._who} looks at what the model returns, but loss_func did not call trainer.model(...). Call the "
                "model itself there, not one of its parts or methods."
            )
        return output

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._output = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, output)
