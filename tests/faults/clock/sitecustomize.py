"""A clock that can be set back by an hour: this process's own, or those of all processes that are told of one file.

Linux has no namespace for the time of day, and the machine's own clock is everybody's.
"""

import os
import time

HOUR = 3600.0

own_is_set_back = False
_real = time.time
_machine = os.environ.get("FAULT_CLOCK", "")


def _time() -> float:
    is_back = own_is_set_back or (_machine and os.path.exists(_machine))  # noqa: PTH110 - it is called often
    return _real() - HOUR if is_back else _real()


time.time = _time
