"""Exit codes of workers and of the launcher, as a shell shows them."""

from __future__ import annotations

import signal

EXIT_STOPPED_EARLY = 75
"""A worker stopped early with all work saved: run the same command again (EX_TEMPFAIL of sysexits.h)."""

EXIT_HUNG = 124
"""The launcher found that the workers make no progress (what ``timeout`` exits with)."""


def shell_code(returncode: int) -> int:
    """The exit code as a shell shows it: 128 + n for a process that signal n ended (returncode -n)."""
    return 128 - returncode if returncode < 0 else returncode


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
