"""Versions of what training needs, and whether torch's CUDA and the GPU driver go together."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from minetorch_launch.doctor.finding import Finding, failed, passed, warned

if TYPE_CHECKING:
    from minetorch_launch.devices import Driver

__all__ = ["Versions", "assess_driver", "assess_versions", "read_versions"]

_PYTHON_LEAST = (3, 10)
_TORCH_LEAST = (2, 9)
_ACCELERATE_LEAST = (1, 10)


@dataclass(frozen=True)
class Versions:
    """What is installed; None for what is not."""

    python: str
    torch: str | None
    accelerate: str | None


def read_versions() -> Versions:
    """Without importing any of them."""
    return Versions(platform.python_version(), _installed("torch"), _installed("accelerate"))


def assess_versions(versions: Versions) -> list[Finding]:
    """Each against the oldest that Minetorch works with."""
    python = f"{versions.python} ({sys.executable})"
    findings = [
        passed("python", python)
        if _numbers(versions.python) >= _PYTHON_LEAST
        else failed("python", f"{python} is too old", f"install Python {_dotted(_PYTHON_LEAST)} or newer")
    ]
    if versions.torch is None:
        findings.append(failed("torch", "is not installed", "type pip install torch (see pytorch.org for your GPU)"))
    elif _numbers(versions.torch) < _TORCH_LEAST:
        least = _dotted(_TORCH_LEAST)
        findings.append(failed("torch", f"{versions.torch} is too old", f"type pip install 'torch>={least}'"))
    else:
        findings.append(passed("torch", versions.torch))
    least = _dotted(_ACCELERATE_LEAST)
    if versions.accelerate is None:
        advice = f"type pip install 'accelerate>={least}', unless you only launch scripts that do without the Trainer"
        findings.append(warned("accelerate", "is not installed, and minetorch.Trainer needs it", advice))
    elif _numbers(versions.accelerate) < _ACCELERATE_LEAST:
        findings.append(
            warned("accelerate", f"{versions.accelerate} is too old", f"type pip install 'accelerate>={least}'")
        )
    else:
        findings.append(passed("accelerate", versions.accelerate))
    return findings


def assess_driver(build: str | None, driver: Driver | None, device: str) -> Finding:
    """Whether torch can use the GPUs that the driver shows.

    CUDA runs on a driver of the same major version or a newer one; on one with an older minor version it cannot
    compile kernels at run time (NVIDIA's "CUDA compatibility" guide).

    Args:
        build: the CUDA that torch was built with, such as ``12.8``; None for a build without.
        driver: the machine's; None if there is none.
        device: what was asked for: ``auto``, ``cpu`` or ``cuda``.
    """
    check = "GPU driver"
    if driver is None:
        if device != "cuda":
            return passed(check, "none; the workers compute on the CPU")
        return failed(
            check, "none was found", "install the NVIDIA driver; in a container: docker run --gpus all; or --device cpu"
        )
    found = f"{driver.version} for CUDA {_dotted(driver.cuda)}: {tally(driver.gpus)}"
    if device == "cpu":
        return passed(check, f"{found}; not used with --device cpu")
    if build is None:
        say_build = failed if device == "cuda" else warned
        advice = "install the CUDA build of torch (pytorch.org), or type --device cpu"
        return say_build(check, f"{found}; but this torch is built without CUDA", advice)
    needed = _numbers(build)
    if not needed:
        return passed(check, found)
    if needed[:1] > driver.cuda[:1]:
        return failed(
            check,
            f"{found}; torch is built for CUDA {build}, which this driver cannot run",
            f"install a driver for CUDA {needed[0]}, or a torch built for CUDA {driver.cuda[0]} (pytorch.org)",
        )
    if needed[0] == driver.cuda[0] and needed > driver.cuda:
        return warned(
            check,
            f"{found}; torch is built for CUDA {build}: runs, but kernels compiled at run time (PTX) may fail",
            "update the driver if you see 'unsupported PTX version'",
        )
    return passed(check, f"{found}; torch is built for CUDA {build}")


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def tally(names: tuple[str, ...]) -> str:
    """Each name with how often it is there, as in ``2 x NVIDIA A100``."""
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "no GPU"
