"""``minetorch-launch doctor``: whether a launch would work here, and what to do where it would not."""

from minetorch_launch.doctor.command import main

__all__ = ["main"]
