"""Finds this machine's CPUs and GPUs without torch and without a GPU context.

A context in the launcher would take hundreds of megabytes of GPU 0 for as long as the workers run. NVML and ``/sys``
list the drivers' GPUs without a context. Which of them a worker sees then follows from the build of torch and from
CUDA_VISIBLE_DEVICES, or from its counterparts of ROCm and of Intel.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_PROC_GPUS = Path("/proc/driver/nvidia/gpus")
_SYS = Path("/sys")
_INTEL = "0x8086"


@dataclass(frozen=True)
class Gpu:
    """One GPU as a worker will see it."""

    index: int
    """Its number among the visible ones: the ``N`` of torch's ``cuda:N``."""

    name: str
    """UUID, PCI address, or what the list of visible devices calls it."""

    numa_node: int | None = None
    """The NUMA node that it is attached to; None if unknown."""


@dataclass(frozen=True)
class HostInfo:
    """One machine."""

    name: str
    """Its host name, as logs and reports give it."""

    cores: int
    """CPUs that this process may run on (its affinity, not the machine's count)."""

    gpus: tuple[Gpu, ...] = ()
    """The GPUs that a worker would see, in torch's order."""

    gpu_kind: Literal["cuda", "xpu"] = "cuda"
    """What torch calls their device type; ``cuda`` for ROCm, too."""

    no_gpu_reason: str = "this machine shows no NVIDIA GPU"
    """Why ``gpus`` is empty, in words for an error message."""

    @property
    def short_name(self) -> str:
        """The host's name without its domain: what stands before its lines."""
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver of this machine."""

    version: str
    cuda: tuple[int, int]
    """The newest CUDA that it runs: major and minor."""

    gpus: tuple[str, ...]
    """Names of all the machine's GPUs, hidden ones included."""


def find_host(environ: Mapping[str, str], sys: Path = _SYS) -> HostInfo:
    """This machine, as a worker with the environment ``environ`` would see it."""
    build = _torch_build()
    if build is not None and build.get("xpu"):
        kind: Literal["cuda", "xpu"] = "xpu"
        gpus, reason = _intel_gpus(environ.get("ZE_AFFINITY_MASK"), sys)
    else:
        kind = "cuda"
        gpus, reason = _rocm_gpus(environ, sys) if build and build.get("hip") else _nvidia_gpus(build, environ, sys)
    return HostInfo(
        name=socket.gethostname(),
        cores=len(os.sched_getaffinity(0)),
        gpus=tuple(Gpu(index, name, node) for index, (name, node) in enumerate(gpus)),
        gpu_kind=kind,
        no_gpu_reason=reason,
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


FoundGpus = list[tuple[str, "int | None"]]
"""Name and NUMA node of each visible GPU."""


def _nvidia_gpus(build: Mapping[str, str] | None, environ: Mapping[str, str], sys: Path) -> tuple[FoundGpus, str]:
    if build is not None and not build.get("cuda"):
        return [], "the installed torch is built without CUDA, ROCm and XPU"
    found = _nvml_gpus() or _proc_gpus()
    if not found:
        return [], "this machine shows no NVIDIA GPU"
    mask = environ.get("CUDA_VISIBLE_DEVICES")
    visible = visible_gpus(list(found), mask)
    nodes = {uuid: _numa_node(address, sys) for uuid, address in found.items()}
    return [(uuid, nodes.get(uuid)) for uuid in visible], f"CUDA_VISIBLE_DEVICES={mask!r} hides all {len(found)}"


def _rocm_gpus(environ: Mapping[str, str], sys: Path) -> tuple[FoundGpus, str]:
    """AMD's GPUs: ROCR_VISIBLE_DEVICES selects first, and HIP_VISIBLE_DEVICES (or CUDA's) among those left."""
    found: dict[str, str] = {}
    for folder in _in_order(sys.glob("class/kfd/kfd/topology/nodes/*")):
        with contextlib.suppress(OSError, ValueError):  # a container may not read those of GPUs that it has not
            if int((folder / "gpu_id").read_text()) == 0:
                continue  # a CPU
            words = dict(line.split(maxsplit=1) for line in (folder / "properties").read_text().splitlines())
            place = int(words["location_id"])
            address = f"{int(words.get('domain', 0)):04x}:{place >> 8 & 255:02x}:{place >> 3 & 31:02x}.{place & 7}"
            found[f"GPU-{int(words.get('unique_id', 0)):016x}-{folder.name}"] = address
    if not found:
        return [], "this machine shows no AMD GPU (in /sys/class/kfd)"
    hip = "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in environ else "CUDA_VISIBLE_DEVICES"
    visible = list(found)
    for variable in ("ROCR_VISIBLE_DEVICES", hip):
        visible = visible_gpus(visible, environ.get(variable))
    masks = ", ".join(f"{name}={environ[name]!r}" for name in ("ROCR_VISIBLE_DEVICES", hip) if name in environ)
    return [(name, _numa_node(found[name], sys)) for name in visible], f"{masks} hides all {len(found)}"


def _intel_gpus(mask: str | None, sys: Path) -> tuple[FoundGpus, str]:
    """Intel's GPUs; level zero's default counts each tile of a card as a device."""
    found: FoundGpus = []
    for card in _in_order(sys.glob("class/drm/card[0-9]*")):
        with contextlib.suppress(OSError):
            if "-" in card.name or (card / "device/vendor").read_text().strip() != _INTEL:
                continue  # a connector, or another maker's
            address = (card / "device").resolve().name
            tiles = max(1, len(list(card.glob("device/tile[0-9]*"))))
            found += [(f"{address}.{tile}", _numa_node(address, sys)) for tile in range(tiles)]
    if not found:
        return [], "this machine shows no Intel GPU (in /sys/class/drm)"
    if mask is None:
        return found, ""
    entries = (entry.strip().partition(".")[0] for entry in mask.split(","))
    chosen = [found[int(entry)] for entry in entries if entry.isdecimal() and int(entry) < len(found)]
    return chosen, f"ZE_AFFINITY_MASK={mask!r} hides all {len(found)}"


def _in_order(folders: Iterable[Path]) -> list[Path]:
    """By the number at the end of their names."""
    return sorted(folders, key=lambda folder: (len(folder.name), folder.name))


def _numa_node(address: str, sys: Path) -> int | None:
    """The NUMA node of a PCI device; machines with a single node say -1 for it."""
    try:
        return max(0, int((sys / "bus/pci/devices" / address.lower() / "numa_node").read_text()))
    except (OSError, ValueError):
        return None


def torch_cuda_build() -> str | None:
    """The CUDA version that the installed torch is built with, None for a build without, "" if that is unknown."""
    build = _torch_build()
    return "" if build is None else build.get("cuda")


def _torch_build() -> dict[str, str] | None:
    """The versions of CUDA, HIP and XPU in the installed torch; None if that is unknown.

    Read off torch's own file, because importing even ``torch.version`` imports torch.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    return dict(re.findall(r"^(cuda|hip|xpu)\b[^=]*= '([^']+)'$", text, re.MULTILINE))


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


def _nvml_gpus() -> dict[str, str]:
    """PCI address of each GPU, by UUID, in the driver's order."""
    with _nvml() as nvml:
        if nvml is None:
            return {}
        found = {
            _nvml_text(nvml, index, "nvmlDeviceGetUUID"): _nvml_address(nvml, index)
            for index in range(_nvml_count(nvml))
        }
        return {uuid: address for uuid, address in found.items() if uuid}


def _nvml_address(nvml: ctypes.CDLL, index: int) -> str:
    handle, info = ctypes.c_void_p(), _PciInfo()
    if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
        return ""
    if nvml.nvmlDeviceGetPciInfo_v3(handle, ctypes.byref(info)) != 0:
        return ""
    return f"{info.domain:04x}:{info.bus:02x}:{info.device:02x}.0"


class _PciInfo(ctypes.Structure):
    _fields_ = (
        ("old_address", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("device_id", ctypes.c_uint),
        ("subsystem_id", ctypes.c_uint),
        ("address", ctypes.c_char * 32),
    )


def _nvml_text(nvml: ctypes.CDLL, index: int, call: str) -> str:
    """What ``call`` answers for a GPU; empty if it fails."""
    handle, text = ctypes.c_void_p(), ctypes.create_string_buffer(96)
    if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
        return ""
    if nvml[call](handle, text, len(text)) != 0:
        return ""
    return text.value.decode()


def _proc_gpus() -> dict[str, str]:
    """The kernel driver's own list, for containers that carry no NVML library."""
    found = {}
    with contextlib.suppress(OSError):
        for information in sorted(_PROC_GPUS.glob("*/information")):
            uuid = re.search(r"^GPU UUID:\s*(\S+)", information.read_text(), re.MULTILINE)
            found[uuid[1] if uuid else information.parent.name] = information.parent.name
    return found
