"""Versions of the packages that training needs, and whether torch's CUDA and the GPU driver go together."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata

from minetorch_doctor.result import Result
from minetorch_launch.devices import Driver

_MINIMUM = {"torch": (2, 9), "accelerate": (1, 10)}


def read_versions() -> dict[str, str]:
    """Versions of the installed packages, read without importing them."""
    versions = {}
    for package in ("minetorch", *_MINIMUM):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def check_versions(versions: Mapping[str, str]) -> Result:
    """Compare each package with the oldest version that Minetorch works with; only the Trainer needs accelerate."""
    shown = ", ".join(f"{package} {version}" for package, version in versions.items())
    old = [package for package, minimum in _MINIMUM.items() if _numbers(versions.get(package, "0.0")) < minimum]
    if not old:
        return Result("versions", "pass", f"Python {platform.python_version()}, {shown}")
    wanted = " ".join(f"'{package}>={_dotted(_MINIMUM[package])}'" for package in old)
    found = f"{' and '.join(old)} missing or too old ({shown})"
    return Result("versions", "fail" if "torch" in old else "warn", found, f"type pip install {wanted}")


def check_driver(build: str | None, driver: Driver | None, device: str, gpus: int = 0) -> Result:
    """Check whether torch can use the GPUs that the driver shows.

    CUDA runs on a driver of the same major version or a newer one. On a driver with an older minor version it cannot
    compile kernels at run time (NVIDIA's "CUDA compatibility" guide).

    Args:
        build: the CUDA version that torch is built with, such as ``12.8``; None for a build without CUDA.
        driver: the driver of this machine; None if there is none.
        device: what the user asked for: ``auto``, ``cpu``, ``cuda`` or ``xpu``.
        gpus: number of visible GPUs, also of other makers.
    """
    check = "GPU driver"
    if driver is None and gpus:
        return Result(check, "pass", f"{gpus} visible GPUs, not NVIDIA's")
    if driver is None:
        advice = "install the NVIDIA driver, or type docker run --gpus all, or --device cpu" if device == "cuda" else ""
        return Result(check, "fail" if advice else "pass", "there is none: the workers can only use the CPU", advice)
    found = f"{driver.version} for CUDA {_dotted(driver.cuda)}: {count_names(driver.gpus)}"
    if device == "cpu":
        return Result(check, "pass", f"{found}; --device cpu does not use it")
    if build is None:
        advice = "install the CUDA build of torch (pytorch.org), or type --device cpu"
        return Result(check, "fail" if device == "cuda" else "warn", f"{found}; torch is built without CUDA", advice)
    found += f"; torch is built for CUDA {build or '(unknown)'}"
    needed = _numbers(build)
    if needed[:1] > driver.cuda[:1]:
        advice = f"install a driver for CUDA {needed[0]}, or a torch built for CUDA {driver.cuda[0]} (pytorch.org)"
        return Result(check, "fail", f"{found}, which this driver cannot run", advice)
    if needed[:1] == driver.cuda[:1] and needed > driver.cuda:
        advice = "update the driver if you see 'unsupported PTX version'"
        return Result(check, "warn", f"{found}: kernels compiled at run time (PTX) may fail", advice)
    return Result(check, "pass", found)


def count_names(names: tuple[str, ...]) -> str:
    """Each name with its count, as in ``2 x NVIDIA A100``."""
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "no GPU"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
