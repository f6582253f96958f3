"""What can be saved in a checkpoint."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Stateful(Protocol):
    """An object whose state a checkpoint can hold: an LR scheduler, a plugin, a drawer's curves.

    The two methods are all that is asked, so that torch's own classes qualify as they are.
    """

    def state_dict(self) -> dict[str, Any]:
        """The state, made of tensors and plain values (`weights_only=True` must be able to read it)."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take over a state that `state_dict` returned."""
        ...
