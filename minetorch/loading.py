"""`minetorch.load`: a checkpoint of any run, without its Trainer, its model or its code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minetorch.checkpoint.reader import decode_onto
from minetorch.checkpoint.run import Run
from minetorch.checkpoint.verification import read_verified

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping


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
        By key: `state_dict`, the model's; `optimizer`; `scaler`, with `amp="fp16"` only; `statable` and `plugins`, each
        a dict of states by name; `epoch`; `progress`, the counters; `metrics`; `lowest_train_loss`; `lowest_val_loss`;
        `drawer`, the curves; `random`, each rank's generators.

    Raises:
        CheckpointNotFoundError: there is no such run or checkpoint; the message lists what there is.
        CheckpointCorruptError: it is damaged.
        CheckpointMismatchError: it has a newer format, or code in it.
        ConfigurationError: the URL or the name is not one.
        StorageError: the storage could not be listed or read.
    """
    found = Run.open(run, storage_options)
    manifest = found.find(name)
    return decode_onto(read_verified(found.models, manifest), found.models.url_of(manifest.payload), map_location)
