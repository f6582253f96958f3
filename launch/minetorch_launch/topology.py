"""What a machine has to run workers on: pure data."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Device", "Node"]


@dataclass(frozen=True)
class Device:
    """One accelerator as a worker will see it."""

    index: int
    """Its number among the visible ones: the ``N`` of torch's ``cuda:N``."""

    name: str
    """UUID, or what CUDA_VISIBLE_DEVICES calls it."""


@dataclass(frozen=True)
class Node:
    """One machine."""

    host: str
    """Its name, as logs and reports give it."""

    cores: int
    """CPUs that this process may run on (its affinity, not the machine's count)."""

    gpus: tuple[Device, ...] = ()
    """The GPUs that a worker would see, in torch's order."""

    no_gpu_because: str = "this machine shows no NVIDIA GPU"
    """Why ``gpus`` is empty, in words for an error message."""

    @property
    def short_name(self) -> str:
        """The host's name without its domain: what stands before its lines."""
        return self.host.partition(".")[0]
