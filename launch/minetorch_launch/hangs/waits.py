"""Names what a Python stack waits in: collectives, the DataLoader, files, locks and the like. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Frame", "Owner", "Wait", "Waiting", "find_wait"]

Owner = Literal["user", "library", "trainer"]


@dataclass(frozen=True)
class Frame:
    """One line of a Python stack."""

    file: str
    line: int | None
    function: str
    owner: Owner
    """Whose code it is: the user's, minetorch's Trainer's, or any other library's."""

    shown: str
    """The file as it is shown: relative to the working folder if it is below it."""

    source: str = ""
    """The line's text; empty if it is not at hand."""


class Waiting(IntEnum):
    """Whether a wait is likely to be for other ranks; who hangs by itself is to blame before those who wait."""

    SILENT = 0
    """It does not even answer."""

    ALONE = 1
    """On something of its own."""

    PERHAPS = 2
    """Work on a device or a backward pass may hold a collective."""

    TOGETHER = 3
    """In a collective or another exchange between ranks."""


@dataclass(frozen=True)
class Wait:
    """What a stack waits in."""

    name: str
    waiting: Waiting


@dataclass(frozen=True)
class _Rule:
    file: str
    """Regular expression that is found in the file's path."""

    functions: str
    """Regular expression that is the whole of the function's name."""

    where: str
    """What the name of the function is explained by."""

    waiting: Waiting = Waiting.ALONE
    name: str = ""
    """What is shown in place of the function's name."""


_EXCHANGES = (
    "all_gather|all_gather_(coalesced|into_tensor|into_tensor_coalesced|object|single|single_coalesced|tensor)|"
    "all_reduce|all_reduce_coalesced|all_to_all|all_to_all_single|barrier|monitored_barrier|broadcast|"
    "broadcast_object_list|gather|gather_object|reduce|reduce_scatter|reduce_scatter_(single|tensor)|"
    "reduce_scatter_tensor_coalesced|scatter|scatter_object_list|send|recv|isend|irecv|batch_isend_irecv|"
    "send_object_list|recv_object_list|wait_tensor|init_process_group|destroy_process_group|new_group|split_group|"
    "new_subgroups|new_subgroups_by_enumeration|rendezvous"
)

_BETWEEN_RANKS = (
    _Rule(r"/torch/distributed/(distributed_c10d|rendezvous)\.py$", _EXCHANGES, "torch.distributed", Waiting.TOGETHER),
    _Rule(
        r"/torch/distributed/(_functional_collectives|nn/functional)\.py$",
        _EXCHANGES,
        "torch.distributed",
        Waiting.TOGETHER,
    ),
    _Rule(r"/torch/distributed/device_mesh\.py$", "init_device_mesh", "torch.distributed", Waiting.TOGETHER),
    _Rule(r"/torch/distributed/utils\.py$", "_sync_module_states|_verify_param_shape_across_processes",
          "torch.distributed", Waiting.TOGETHER, "start"),
    _Rule(r"/torch/nn/parallel/distributed\.py$", "__init__", "torch DDP", Waiting.TOGETHER, "start"),
)  # fmt: skip

_OTHERS = (
    _Rule(r"/torch/nn/parallel/distributed\.py$", "forward", "torch DDP", Waiting.PERHAPS),
    _Rule(r"/torch/distributed/(fsdp|_composable|checkpoint)/", r".*", "torch.distributed", Waiting.PERHAPS),
    _Rule(r"/torch/(_tensor|autograd/__init__)\.py$", "backward|grad", "torch autograd", Waiting.PERHAPS),
    _Rule(r"/torch/cuda/(__init__|streams)\.py$", "synchronize|wait", "CUDA", Waiting.PERHAPS),
    _Rule(r"/torch/utils/data/dataloader\.py$", "__next__|__iter__", "torch DataLoader"),
    _Rule(r"/torch/utils/data/dataloader\.py$", "_shutdown_workers|__del__", "torch DataLoader", name="end of workers"),
    _Rule(r"/torch/optim/[^/]+\.py$", "step", "torch optimizer", Waiting.PERHAPS),
    _Rule(r"/torch/serialization\.py$", "save|load", "torch"),
    _Rule(r"/torch/(_dynamo|_inductor|_functorch)/", ".*", "torch", name="compiling"),
    _Rule(r"/torch/hub\.py$", ".*", "network I/O"),
    _Rule(r"/(fsspec|s3fs|gcsfs|adlfs)/", ".*", "fsspec"),
    _Rule(r"/subprocess\.py$", "run|call|check_call|check_output|getoutput|communicate|wait|__init__", "subprocess"),
    _Rule(r"/threading\.py$", "_shutdown", "Python's exit", name="wait for threads"),
    _Rule(r"/threading\.py$", "join|wait|wait_for|acquire|_wait_for_tstate_lock", "threading"),
    _Rule(r"/queue\.py$", "get|put|join", "queue"),
    _Rule(r"/multiprocessing/(queues|connection|synchronize|pool|process|managers)\.py$",
          "get|put|join|join_thread|recv|recv_bytes|send|poll|wait|acquire|map|starmap|apply|next|__next__|_callmethod",
          "multiprocessing"),
    _Rule(r"/multiprocessing/popen_\w+\.py$", "wait|poll", "multiprocessing"),
    _Rule(r"/concurrent/futures/[^/]+\.py$", "result|exception|wait|shutdown|result_iterator", "concurrent.futures"),
    _Rule(r"/asyncio/[^/]+\.py$", "run|run_until_complete|run_forever", "asyncio"),
    _Rule(r"/(socket|ssl|http/client|urllib/request|ftplib|smtplib)\.py$",
          "accept|connect|create_connection|readinto|recv\\w*|read\\w*|sendall|do_handshake|getresponse|urlopen|request",
          "network I/O"),
    _Rule(r"/(requests|urllib3|httpx|httpcore|aiohttp|botocore|boto3|huggingface_hub)/", ".*", "network I/O"),
    _Rule(r"/selectors\.py$", "select", "selectors"),
    _Rule(r"/(pathlib(/[^/]+)?|shutil|gzip|bz2|lzma|zipfile(/[^/]+)?|tarfile|tempfile|glob|pickle|json/__init__|codecs)\.py$",
          "open|read\\w*|write\\w*|copy\\w*|move|rmtree|extract\\w*|mkdir|exists|glob|rglob|iglob|load|dump|decode|encode",
          "file I/O"),
    _Rule(r"^<frozen importlib\._bootstrap(_external)?>$", "_find_and_load", "Python", name="import"),
    _Rule(r"/importlib/__init__\.py$", "import_module|reload", "Python", name="import"),
)  # fmt: skip

# Calls into C that leave no frame of their own, told by the user's line.
_PERHAPS_IN_C = re.compile(r"\.(item|tolist|cpu|numpy|backward|wait|synchronize)\(")


def find_wait(frames: Sequence[Frame]) -> tuple[Wait, Frame | None]:
    """What a stack waits in, and the innermost line of the user's own code that led there.

    Args:
        frames: innermost first.

    Returns:
        An exchange between ranks if there is one in what the user's line called, else the outermost call with a
        known name, for the inner ones only say how it does its work; else the innermost function. And the
        user's frame, or where there is none the outermost.
    """
    if not frames:
        return Wait("the launcher's part, before or after the script", Waiting.ALONE), None
    at = next((index for index, frame in enumerate(frames) if frame.owner == "user"), None)
    called = frames if at is None else frames[:at]
    place = frames[-1] if at is None else frames[at]
    return _name(called, place), place


def _name(called: Sequence[Frame], place: Frame) -> Wait:
    known = _outermost(called, _BETWEEN_RANKS) or _outermost(called, _OTHERS)
    own = [frame for frame in called if frame.owner == "trainer"]
    trainer = next((frame for frame in own if frame.file.endswith("/trainer.py")), own[0] if own else None)
    if known is not None:
        return known if trainer is None else Wait(f"{known.name}, Trainer: {_words(trainer)}", known.waiting)
    if trainer is not None:
        return Wait(f"Trainer: {_words(trainer)}", _in_c(called[0]))
    if called:
        return Wait(f"{called[0].function} ({_module(called[0].file)})", Waiting.ALONE)
    return Wait("the script's own code", _in_c(place))


def _outermost(called: Sequence[Frame], rules: tuple[_Rule, ...]) -> Wait | None:
    for frame in reversed(called):
        for rule in rules:
            if re.search(rule.file, frame.file) and re.fullmatch(rule.functions, frame.function):
                return Wait(f"{rule.name or frame.function} ({rule.where})", rule.waiting)
    return None


def _in_c(innermost: Frame) -> Waiting:
    return Waiting.PERHAPS if _PERHAPS_IN_C.search(innermost.source) else Waiting.ALONE


def _words(frame: Frame) -> str:
    return "start" if frame.function == "__init__" else frame.function.strip("_").replace("_", " ")


def _module(file: str) -> str:
    """``http.client`` for a file of the library; the name of the file for what else there is."""
    inside = re.split(r"/(?:site-packages|dist-packages)/|/python3\.\d+/(?!site-|dist-)", file)[-1]
    return inside.removesuffix(".py").removesuffix("/__init__").lstrip("/").replace("/", ".")
