"""`minetorch export`: a checkpoint's weights, or all of it, as one file for others."""

from __future__ import annotations

import importlib
import json
import os
from typing import TYPE_CHECKING, Any, BinaryIO

from minetorch.checkpoint.store import Store
from minetorch.cli.options import add_common, add_run, local_path, storage_options
from minetorch.errors import CheckpointMismatchError, ConfigurationError, StorageError
from minetorch.views.output import bytes_text, plural, warn, write, write_json

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    import torch

    from minetorch.checkpoint.manifest import Manifest
    from minetorch.checkpoint.run import Run

_SAFETENSORS = ".safetensors"


def add_to(commands: Any) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "export",
        help="a checkpoint's weights as one file",
        description="Writes the model's weights, as model.load_state_dict takes them, to a file for torch.load or, if "
        "its name ends in .safetensors, for safetensors.",
        allow_abbrev=False,
    )
    add_run(parser)
    parser.add_argument("name", metavar="NAME", help="the checkpoint: best, latest, epoch_3, …")
    parser.add_argument("out", metavar="OUT", help="the file to write, on this machine")
    parser.add_argument("--all", action="store_true", help="the whole state, not only the weights; not as safetensors")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    add_common(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Write the file, and print what is in it."""
    out = local_path(given.out)
    as_safetensors = out.suffix == _SAFETENSORS
    if as_safetensors and given.all:
        raise ConfigurationError("--all: a safetensors file holds tensors only; give OUT a name that ends in .pth")
    if os.path.lexists(out) and not given.force:
        raise ConfigurationError(f"{out} exists already: give --force to replace it, or another name")
    library = _safetensors() if as_safetensors else None
    found, manifest, state = _read(given)
    weights = state if given.all else _weights(state, manifest)
    data = None if library is None else _as_safetensors(library, weights, manifest)
    try:
        size = _write(out, weights, data)
    except RecursionError:  # of pickle
        raise CheckpointMismatchError(
            f"{manifest.payload} cannot be exported whole: its values are nested too deeply; leave out --all"
        ) from None
    if given.json:
        facts = {"run": found.name, "name": manifest.name, "out": str(out), "size": size, "keys": list(weights)}
        write_json({**facts, "epoch": manifest.epoch, "step": manifest.step})
    else:
        what = "the whole state" if given.all else plural(len(weights), "weight")
        where = f"{manifest.name} (epoch {manifest.epoch}, step {manifest.step})"
        write(f"Wrote {out}: {what} of {where}, {bytes_text(size)}.")
    return 0


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError:
        raise ConfigurationError(
            "writing .safetensors needs a package that is not installed: pip install 'minetorch[safetensors]'; or give "
            "OUT a name that ends in .pth"
        ) from None


def _read(given: argparse.Namespace) -> tuple[Run, Manifest, dict[str, Any]]:
    from minetorch.checkpoint.loading import read_checkpoint, with_plain_names
    from minetorch.checkpoint.reader import decode  # these import torch
    from minetorch.checkpoint.restoring import add_curves

    found, manifest, payload = read_checkpoint(given.run_url, given.name, storage_options(given))
    state = with_plain_names(decode(payload, found.models.url_of(manifest.payload)))
    if given.all:
        add_curves(state, found.models, manifest, warn)
    return found, manifest, state


def _weights(state: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    weights = state.get("state_dict")
    if not isinstance(weights, dict):
        raise CheckpointMismatchError(
            f"{manifest.payload} has no model's state_dict in it; it has {', '.join(state)}: export it with --all"
        )
    return weights


def _as_safetensors(library: Any, weights: dict[str, Any], manifest: Manifest) -> bytes:
    """The file's bytes. Tensors that share memory are each written whole, so that every name is in the file."""
    import torch

    others = [name for name, value in weights.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise CheckpointMismatchError(
            f"{manifest.payload} holds more than tensors ({', '.join(others)}), which a safetensors file cannot: "
            "give OUT a name that ends in .pth"
        )
    metadata = {
        "format": "pt",
        "minetorch_checkpoint": manifest.name,
        "epoch": str(manifest.epoch),
        "step": str(manifest.step),
        "metrics": json.dumps({name: repr(value) for name, value in manifest.metrics.items()}),
    }
    try:
        data: bytes = library.save(_separate(weights), metadata)
    except (ValueError, KeyError, RuntimeError) as err:
        raise CheckpointMismatchError(f"{manifest.payload} cannot be written as safetensors: {err}") from None
    return data


def _separate(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, each contiguous and in memory of its own, which is what safetensors takes."""
    owners: set[int] = set()
    separate = {}
    for name, tensor in weights.items():
        storage = tensor.untyped_storage()
        whole = tensor.is_contiguous() and storage.nbytes() == tensor.numel() * tensor.element_size()
        separate[name] = tensor if whole and storage.data_ptr() not in owners else tensor.contiguous().clone()
        owners.add(storage.data_ptr())
    return separate


def _write(out: Path, weights: dict[str, Any], data: bytes | None) -> int:
    import torch

    store = Store.open(out.absolute().parent)
    if not store.local_path().is_dir():
        raise StorageError(f"cannot write {out}: there is no folder {out.parent}")

    def write(file: BinaryIO) -> None:
        if data is None:
            torch.save(weights, file)
        else:
            file.write(data)

    store.write_stream(out.name, write)
    return store.size(out.name)
