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
from pathlib import Path
from typing import TYPE_CHECKING

from minetorch_launch.topology import Device, Node

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["find_node", "visible_gpus"]

_PROC_GPUS = Path("/proc/driver/nvidia/gpus")


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
    if not _torch_has_cuda():
        return [], "the installed torch is built without CUDA"
    uuids = _nvml_uuids() or _proc_uuids()
    if not uuids:
        return [], "this machine shows no NVIDIA GPU"
    return visible_gpus(uuids, mask), f"CUDA_VISIBLE_DEVICES={mask!r} hides all {len(uuids)}"


def _torch_has_cuda() -> bool:
    """Read off torch's own file, because importing even ``torch.version`` imports torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return True
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return True
    return re.search(r"^cuda\b[^=]*= None$", text, re.MULTILINE) is None


def _nvml_uuids() -> list[str]:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    if nvml.nvmlInit_v2() != 0:
        return []
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        return [uuid for index in range(count.value) if (uuid := _nvml_uuid(nvml, index))]
    finally:
        nvml.nvmlShutdown()


def _nvml_uuid(nvml: ctypes.CDLL, index: int) -> str:
    handle, uuid = ctypes.c_void_p(), ctypes.create_string_buffer(96)
    if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
        return ""
    if nvml.nvmlDeviceGetUUID(handle, uuid, len(uuid)) != 0:
        return ""
    return uuid.value.decode()


def _proc_uuids() -> list[str]:
    """The kernel driver's own list, for containers that carry no NVML library."""
    uuids = []
    with contextlib.suppress(OSError):
        for information in sorted(_PROC_GPUS.glob("*/information")):
            found = re.search(r"^GPU UUID:\s*(\S+)", information.read_text(), re.MULTILINE)
            uuids.append(found[1] if found else information.parent.name)
    return uuids
