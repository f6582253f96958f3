"""`minetorch.load`: a checkpoint of any run, without its Trainer, its model or its code."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from minetorch.checkpoint.model_names import without_compile
from minetorch.checkpoint.reader import decode_onto
from minetorch.checkpoint.restoring import add_curves
from minetorch.checkpoint.run import Run
from minetorch.checkpoint.verification import read_verified
from minetorch.errors import CheckpointCorruptError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from minetorch.checkpoint.manifest import Manifest


_TRIES = 3


def load(
    run: str | os.PathLike[str],
    name: str | int = "best",
    *,
    map_location: Any = "cpu",
    storage_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The state that a run saved, verified, with no code of the file run.

    ```python
    model.load_state_dict(minetorch.load("s3://bucket/runs/plan-a", "best")["state_dict"])
    ```

    Args:
        run: path or URL of the run's directory, `{alchemistic_directory}/{code}`, or of the `models` folder in it.
        name: "best", "latest", "epoch_3" or 3, a name of your own, or a checkpoint's file name.
        map_location: where the tensors are put, as in `torch.load`.
        storage_options: passed on to fsspec.

    Returns:
        The states by key, which are `state_dict`, the model's, by the names that the model has without `torch.compile`
        and DDP; `optimizer`; `optimizer_class` and `optimizer_groups`, which describe it; `scaler`, with `amp="fp16"`
        only; `statable` and `plugins`, each a dict of states by name; `epoch`; `progress`, the counters; `metrics`;
        `lowest_train_loss`; `lowest_val_loss`; `drawer`, the curves (on the CPU; they are left out, with a warning,
        where their file is damaged); `random`, each rank's generators; `history`, the
        run's starts.

    Raises:
        CheckpointNotFoundError: there is no such run or checkpoint; the message lists what there is.
        CheckpointCorruptError: it is damaged.
        CheckpointMismatchError: it has a newer format, or code in it.
        ConfigurationError: the URL or the name is not one.
        StorageError: the storage could not be listed or read.
    """
    found, manifest, payload = read_checkpoint(run, name, storage_options)
    state = with_plain_names(decode_onto(payload, found.models.url_of(manifest.payload), map_location))
    add_curves(state, found.models, manifest, lambda message: warnings.warn(message, stacklevel=3))
    return state


def with_plain_names(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's state by the names of the plain model, which an old one with `torch.compile` does not have."""
    weights, plugins = state.get("state_dict"), state.get("plugins")
    if "optimizer_class" in state or not isinstance(weights, dict):
        return state
    state = state | {"state_dict": without_compile(weights)}
    if isinstance(plugins, dict):  # such as EMA's average
        state["plugins"] = {name: _with_plain_tables(plugin) for name, plugin in plugins.items()}
    return state


def _with_plain_tables(plugin: Any) -> Any:
    if not isinstance(plugin, dict):
        return plugin
    return {key: without_compile(value) if isinstance(value, dict) else value for key, value in plugin.items()}


def read_checkpoint(
    url: str | os.PathLike[str], name: str | int, storage_options: Mapping[str, Any] | None = None
) -> tuple[Run, Manifest, memoryview]:
    """A run, one of its checkpoints and that one's payload, verified; raises as `load`.

    A run that is training may drop a checkpoint while it is read: then what the name means by now is read.
    """
    for tries_left in reversed(range(_TRIES)):
        run = Run.open(url, storage_options)
        manifest = run.find(name)
        try:
            return run, manifest, read_verified(run.models, manifest.state)
        except CheckpointCorruptError:
            if not tries_left or Run.open(url, storage_options).catalogue.by_name(manifest.name) is not None:
                raise
    raise AssertionError("the last try returns or raises")
