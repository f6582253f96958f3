"""What the workers write, as the launcher shows it and keeps it.

::

    console      the whole: screen, log files, the last lines of a rank that fails
    lines        a stream -> lines
    collapse     equal lines of many ranks -> one
    screen       lines -> the launcher's streams, terminal or not
"""

from minetorch_launch.console.console import SHOWS, Console, label, terminal_columns, wants_colour

__all__ = ["SHOWS", "Console", "label", "terminal_columns", "wants_colour"]
