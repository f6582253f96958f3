"""Makes the variables work that a script sets before its own ``import torch``, or warns about them.

A forked worker has torch imported before the script begins. What torch reads when it is imported, the script sets too
late: numbers of threads are handed to torch directly, and the rest is named once.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from types import FrameType, ModuleType
from typing import Any

from minetorch_launch.worker.task import Task

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_READ_BY_TORCH = re.compile(r"(PYTORCH|TORCH|TORCHDYNAMO|TORCHINDUCTOR)_")
_READ_LATER = re.compile(
    r"TORCH_(NCCL_|FR_|GLOO_|HOME$|HUB$|MODEL_ZOO$|EXTENSIONS_DIR$|CUDA_ARCH_LIST$|FORCE_|SHOW_CPP_)"
    r"|PYTORCH_((CUDA_|HIP_)?ALLOC_CONF$|NVML_|NO_CUDA_MEMORY_CACHING$|TUNABLEOP_)|TORCHINDUCTOR_CACHE_DIR$"
)
"""Variables that torch reads when it needs them, so that a script's setting counts."""


def install(task: Task) -> None:
    """Watch what the program of ``task`` sets; does nothing where torch is not imported yet, or for a function."""
    if "torch" not in sys.modules or task.kind in ("function", "command"):
        return
    warns = os.environ.get("RANK") == "0"  # one worker of a job is enough
    warned: set[str] = set()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event != "os.putenv":
            return
        with suppress(Exception):  # an exception would come out of the script's own statement
            name, value = os.fsdecode(args[0]), os.fsdecode(args[1])
            if os.environ.get(name) == value or not _is_set_in_time(sys._getframe(1)):
                return
            if name in _THREADS:
                sys.modules["torch"].set_num_threads(int(value.split(",")[0]))
            elif warns and name not in warned and _READ_BY_TORCH.match(name) and not _READ_LATER.match(name):
                warned.add(name)
                sys.stderr.write(
                    f"minetorch-launch: the script sets {name}, but torch is already imported in the fork server and "
                    "may not see it: set it in the shell, or type --start-method spawn\n"
                )

    sys.addaudithook(hook)


def _is_set_in_time(frame: FrameType | None) -> bool:
    """Whether the script itself sets the variable, and has not imported torch yet."""
    while frame is not None and frame.f_globals.get("__name__") in ("os", "_collections_abc", "collections.abc"):
        frame = frame.f_back
    if frame is None or frame.f_globals.get("__name__") != "__main__":
        return False
    return not any(map(_is_of_torch, list(frame.f_globals.values())))


def _is_of_torch(value: object) -> bool:
    # Only modules and classes are asked for their names: other objects may do anything when they are.
    if type(value) is ModuleType:
        name = value.__dict__.get("__name__")
    elif type(value) is type:
        name = value.__dict__.get("__module__")
    else:
        return False
    return isinstance(name, str) and name.partition(".")[0] == "torch"
