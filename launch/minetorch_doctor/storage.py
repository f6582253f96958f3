"""Whether checkpoints can be saved at a URL: runs ``minetorch.checkpoint.probe`` in a process of its own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from minetorch_doctor.child import run_child
from minetorch_doctor.result import Result

_CURE = (
    "check the URL, that this user may list, read, write and delete there, and for an object store its credentials "
    "(AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) and its endpoint (AWS_ENDPOINT_URL)"
)


def check_storage(url: str, seconds: float, folder: Path) -> Result:
    """Write, read, list and delete small files at ``url`` within so many seconds."""
    # The probe runs in another folder, so a relative path must be made absolute.
    target = url if "://" in url else os.path.abspath(os.path.expanduser(url))  # noqa: PTH100, PTH111 - links stay
    command = [sys.executable, "-m", "minetorch.checkpoint.probe", "--json", "--", target]
    code, out, error = run_child(command, folder, seconds)
    if code is None:
        return Result("storage", "fail", f"it did not answer within {seconds:g} s", f"{_CURE}; or raise --timeout")
    try:
        return read_probe(json.loads(out.splitlines()[-1]))
    except (IndexError, ValueError):
        found = f"the probe failed: {error.replace(url, 'URL')}"  # which may hold secrets
        return Result("storage", "fail", found, "type pip install minetorch in this environment")


def read_probe(probe: dict[str, Any]) -> Result:
    """What the probe's JSON object means for checkpoints."""
    place, left = probe["url"], ", ".join(probe["left_behind"])
    if probe["error"]:
        return Result("storage", "fail", probe["error"], _CURE + (f". Delete {left} by hand" if left else ""))
    if left:
        return Result("storage", "fail", f"{left} could not be deleted", "allow deleting, or old checkpoints pile up")
    if place.startswith("memory:"):
        return Result("storage", "warn", f"{place} is lost when its process ends", "give a folder or an object store")
    found = f"{place}: {', '.join(f'{step} {value * 1000:.0f} ms' for step, value in probe['seconds'].items())} (1 MiB)"
    if not probe["exclusive"]:
        advice = "have one job at a time write to a folder: this storage cannot keep a second one out"
        return Result("storage", "warn", f"{found}; but two writers can create the same file", advice)
    return Result("storage", "pass", f"{found}; of two writers of one file it refuses one")
