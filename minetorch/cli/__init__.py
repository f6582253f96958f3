"""The `minetorch` command: what runs and checkpoints there are, and moving, checking and dropping them.

Everything is done with the files alone: no GPU, no model and none of a run's code is needed.
"""

from minetorch.cli.command import main

__all__ = ["main"]
