"""Whether checkpoints can be kept at a URL: asks ``minetorch.checkpoint.probe``, in a process of its own."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from minetorch_launch.doctor.child import Child
from minetorch_launch.doctor.finding import Finding, failed, passed, warned

if TYPE_CHECKING:
    from pathlib import Path

    from minetorch_launch.guard import Guard

__all__ = ["assess_storage", "probe_storage", "without_secrets"]

_CHECK = "storage"


def probe_storage(url: str, seconds: float, folder: Path, guard: Guard) -> Finding:
    """Have the storage at ``url`` tried out within so many seconds."""
    shown = without_secrets(url)
    # From the doctor's own folder, as a path may be relative.
    local = url if "://" in url else os.path.abspath(os.path.expanduser(url))  # noqa: PTH100, PTH111 - links stay
    command = [sys.executable, "-m", "minetorch.checkpoint.probe", "--json", "--", local]
    with Child(command, folder, guard, os.environ) as child:
        code = child.wait(seconds)
        if code is None:
            return failed(
                _CHECK,
                f"{shown} did not answer within {seconds:g} s",
                "check the endpoint (AWS_ENDPOINT_URL), the network and proxies; --timeout SECONDS gives it longer",
            )
        try:
            found = json.loads(child.output().splitlines()[-1])
        except (IndexError, ValueError):
            words = child.last_words().replace(url, shown)
            return failed(
                _CHECK, f"{shown} could not be tried: {words}", "type pip install minetorch in this environment"
            )
    return assess_storage(shown, found)


def assess_storage(shown: str, found: dict[str, Any]) -> Finding:
    """What the probe's JSON object means for checkpoints."""
    place = found["url"] or shown
    seconds = {f"{step}_seconds": value for step, value in found["seconds"].items()}
    if found["error"]:
        left = f" Delete {', '.join(found['left_behind'])} by hand." if found["left_behind"] else ""
        return failed(_CHECK, found["error"], _cure(found["error"]) + left, **seconds)
    if found["left_behind"]:
        advice = "allow deleting (s3:DeleteObject), or old checkpoints pile up; delete those by hand"
        return failed(_CHECK, f"{', '.join(found['left_behind'])} could not be deleted", advice, **seconds)
    times = ", ".join(f"{step} {value * 1000:.0f} ms" for step, value in found["seconds"].items())
    described = f"{place}: {times} (1 MiB)"
    if place.startswith("memory:"):
        return warned(_CHECK, f"{place} ends with its process", "give a folder or an object store", **seconds)
    if not found["exclusive"]:
        why = f" ({found['exclusive_error']})" if found["exclusive_error"] else ""
        return warned(
            _CHECK,
            f"{described}; but one file can be created by two writers{why}",
            "have one job at a time write to a folder: this storage cannot keep a second one out",
            exclusive=False,
            **seconds,
        )
    return passed(_CHECK, f"{described}; exclusive creation is honoured", exclusive=True, **seconds)


def without_secrets(url: str) -> str:
    """The URL without user, password and query, where secrets stand."""
    protocol, separator, rest = url.partition("://")
    if not separator:
        return url
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{protocol}://{host.rpartition('@')[2]}{slash}{path}"


def _cure(error: str) -> str:
    cures = (
        ("credentials", "give it credentials: AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("no such bucket", "make the bucket, or check its name and AWS_ENDPOINT_URL; Minetorch makes none"),
        ("NoSuchBucket", "make the bucket, or check its name and AWS_ENDPOINT_URL; Minetorch makes none"),
        ("PermissionError", "allow this user to list, read, write and delete there"),
        ("Read-only", "choose a place that can be written to"),
        ("No space", "make room, or choose another place"),
        ("no storage is known", "check how the URL begins"),
        ("Invalid bucket name", "check the URL: s3://BUCKET/FOLDER, and credentials in the environment"),
        ("not installed", "install the package that it names"),
        ("Connect", "check the endpoint (AWS_ENDPOINT_URL), the network and proxies"),
    )
    return next((cure for words, cure in cures if words in error), "choose a place that this user may write to")
