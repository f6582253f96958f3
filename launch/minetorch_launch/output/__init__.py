"""The output of the workers: a relay to the log files and to the launcher's own stdout and stderr."""

from minetorch_launch.output.relay import Relay
from minetorch_launch.output.terminal import terminal_columns, wants_colour

__all__ = ["Relay", "terminal_columns", "wants_colour"]
