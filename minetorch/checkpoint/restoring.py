"""Reads the state of a committed checkpoint, verified."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from minetorch.checkpoint.curves_file import read_curves
from minetorch.checkpoint.reader import decode, decode_file
from minetorch.checkpoint.verification import missing, read_verified, verify_in_place
from minetorch.errors import CheckpointCorruptError

if TYPE_CHECKING:
    from collections.abc import Callable

    from minetorch.checkpoint.manifest import Manifest
    from minetorch.checkpoint.store import Store


def read_state(store: Store, manifest: Manifest) -> dict[str, Any]:
    """A checkpoint's state, its tensors on the CPU.

    Raises:
        CheckpointMismatchError: it contains code, or is not a state dict.
        CheckpointCorruptError: it is missing, or not the one that its manifest commits.
        StorageError: it could not be read.
    """
    if store.is_local:
        return _read_beside_verifying(store, manifest)
    return decode(read_verified(store, manifest.state), store.url_of(manifest.payload))


def add_curves(state: dict[str, Any], store: Store, manifest: Manifest, warn: Callable[[str], object]) -> None:
    """Add a checkpoint's curves to its state as `drawer`, where a payload of format 1 has them.

    A damaged file of curves must not cost the weights: `warn` is called, and the state stays without curves.

    Raises:
        StorageError: the file could not be read.
    """
    if manifest.curves is None:
        return
    try:
        content = read_curves(store, manifest.curves)
    except CheckpointCorruptError as err:
        warn(f"The curves of checkpoint {manifest.name} are lost, the rest of it is whole: {err}")
        return
    graphs = {
        graph: {name: torch.from_numpy(points) for name, points in curves.items()}
        for graph, curves in content["graphs"].items()
    }
    others = {key: content[key] for key in ("x_names", "marks", "media") if key in content}
    state["drawer"] = {**others, "graphs": graphs}


def _read_beside_verifying(store: Store, manifest: Manifest) -> dict[str, Any]:
    """One thread digests the file while this one decodes it: the system reads it once, and memory holds it once."""
    origin = store.url_of(manifest.payload)
    with ThreadPoolExecutor(1, thread_name_prefix="minetorch-digest") as beside:
        verified = beside.submit(verify_in_place, store, manifest.state)
        try:
            with store.open_read(manifest.payload) as file:
                return decode_file(file, origin)
        except FileNotFoundError:
            raise missing(origin) from None
        finally:
            # What is damaged is said to be so, whatever decoding has made of it.
            verified.result()
