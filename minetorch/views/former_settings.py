"""Settings in the manifests of older versions, under the names that newer manifests have for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_RENAMED = {
    "persist_steps": "checkpoints.every_steps",
    "persist_minutes": "checkpoints.every_minutes",
    "persist_policy": "checkpoints.when_busy",
    "keep_last": "checkpoints.keep_last",
    "keep_best": "checkpoints.keep_best",
    "keep_every": "checkpoints.keep_every",
    "keep_every_steps": "checkpoints.keep_every_steps",
    "monitor": "checkpoints.monitor",
    "mode": "checkpoints.mode",
    "optimizer_options": "checkpoints.optimizer_options",
    "virtual_shards": "strategy.virtual_shards",
    "find_unused_parameters": "strategy.find_unused_parameters",
}


def present_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's settings; those of an older version under their present names."""
    if "elastic" not in settings:
        return dict(settings)
    is_exact = settings["elastic"] == "exact"
    of_another_strategy = "find_unused_parameters" if is_exact else "virtual_shards"
    found: dict[str, Any] = {"strategy": "exact" if is_exact else "ddp"}
    for name, value in settings.items():
        if name not in ("elastic", of_another_strategy):
            found[_RENAMED.get(name, name)] = value
    return found
