"""Finds this machine's CPUs and GPUs without torch and without a CUDA context.

A context in the launcher would take hundreds of megabytes of GPU 0 for as long as the workers run. NVML
lists the driver's GPUs without one; what of them a worker sees then follows from CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minetorch_launch.topology import Device, Node

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Driver", "find_driver", "find_node", "torch_cuda_build", "visible_gpus"]

_PROC_GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver of this machine."""

    version: str
    cuda: tuple[int, int]
    """The newest CUDA that it runs: major and minor."""

    gpus: tuple[str, ...]
    """Names of all the machine's GPUs, hidden ones included."""


def find_node(environ: Mapping[str, str]) -> Node:
    """This machine, as a worker with the environment ``environ`` would see it."""
    gpus, because = _find_gpus(environ.get("CUDA_VISIBLE_DEVICES"))
    return Node(
        host=socket.gethostname(),
        cores=len(os.sched_getaffinity(0)),
        gpus=tuple(Device(index, name) for index, name in enumerate(gpus)),
        no_gpu_because=because,
    )


def visible_gpus(uuids: Sequence[str], mask: str | None) -> list[str]:
    """Which of a machine's GPUs CUDA shows under ``mask``, in the order it numbers them.

    Args:
        uuids: UUID of every GPU of the machine, in the driver's order.
        mask: CUDA_VISIBLE_DEVICES, None if unset: indices, UUIDs (or the beginning of one) or MIG ids. As
            in CUDA, the first entry that names nothing ends the list, and a GPU named twice voids it.
    """
    if mask is None:
        return list(uuids)
    shown: list[str] = []
    for entry in mask.split(","):
        name = _named(uuids, entry.strip())
        if name is None:
            break
        if name in shown:
            return []
        shown.append(name)
    return shown


def _named(uuids: Sequence[str], entry: str) -> str | None:
    if re.fullmatch(r"\+?\d+", entry):
        return uuids[int(entry)] if int(entry) < len(uuids) else None
    if entry.startswith("MIG-") and uuids:
        return entry
    matches = [uuid for uuid in uuids if entry and uuid.startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def _find_gpus(mask: str | None) -> tuple[list[str], str]:
    if torch_cuda_build() is None:
        return [], "the installed torch is built without CUDA"
    uuids = _nvml_uuids() or _proc_uuids()
    if not uuids:
        return [], "this machine shows no NVIDIA GPU"
    return visible_gpus(uuids, mask), f"CUDA_VISIBLE_DEVICES={mask!r} hides all {len(uuids)}"


def torch_cuda_build() -> str | None:
    """The CUDA version that the installed torch is built with, None for a build without, "" if that is unknown.

    Read off torch's own file, because importing even ``torch.version`` imports torch.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"^cuda\b[^=]*= (None|'([^']*)')$", text, re.MULTILINE)
    return found[2] if found else ""


def find_driver() -> Driver | None:
    """What NVML says of the driver; None without one."""
    with _nvml() as nvml:
        if nvml is None:
            return None
        version, cuda = ctypes.create_string_buffer(80), ctypes.c_int()
        if nvml.nvmlSystemGetDriverVersion(version, len(version)) != 0:
            return None
        nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(cuda))
        gpus = tuple(_nvml_text(nvml, index, "nvmlDeviceGetName") for index in range(_nvml_count(nvml)))
        return Driver(version.value.decode(), (cuda.value // 1000, cuda.value % 1000 // 10), gpus)


@contextlib.contextmanager
def _nvml() -> Iterator[ctypes.CDLL | None]:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        nvml = None
    if nvml is None or nvml.nvmlInit_v2() != 0:
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _nvml_count(nvml: ctypes.CDLL) -> int:
    count = ctypes.c_uint()
    return count.value if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0 else 0


def _nvml_uuids() -> list[str]:
    with _nvml() as nvml:
        if nvml is None:
            return []
        uuids = (_nvml_text(nvml, index, "nvmlDeviceGetUUID") for index in range(_nvml_count(nvml)))
        return [uuid for uuid in uuids if uuid]


def _nvml_text(nvml: ctypes.CDLL, index: int, call: str) -> str:
    """What ``call`` answers for a GPU; empty if it fails."""
    handle, text = ctypes.c_void_p(), ctypes.create_string_buffer(96)
    if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
        return ""
    if nvml[call](handle, text, len(text)) != 0:
        return ""
    return text.value.decode()


def _proc_uuids() -> list[str]:
    """The kernel driver's own list, for containers that carry no NVML library."""
    uuids = []
    with contextlib.suppress(OSError):
        for information in sorted(_PROC_GPUS.glob("*/information")):
            found = re.search(r"^GPU UUID:\s*(\S+)", information.read_text(), re.MULTILINE)
            uuids.append(found[1] if found else information.parent.name)
    return uuids
