"""The result of one check, and how results are shown. Pure."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

_INDENT = " " * 22


@dataclass(frozen=True)
class Result:
    """The result of one check."""

    check: str
    status: Literal["pass", "warn", "fail"]  # warn: a launch works, but slowly or not always; fail: it does not
    found: str
    advice: str = ""  # what to do about it


def all_ok(results: Sequence[Result]) -> bool:
    """Whether no check failed."""
    return all(result.status != "fail" for result in results)


def as_row(result: Result, columns: int) -> str:
    """The result as a row of the table, at most ``columns`` wide, with its advice below."""
    label = "FAIL" if result.status == "fail" else result.status
    found, advice = (textwrap.wrap(text, max(50, columns) - 25) for text in (result.found, result.advice))
    rows = [f"  {label}  {result.check:<14}{found[0]}", *(f"{_INDENT}{line}" for line in found[1:])]
    rows += [f"{_INDENT}{'   ' if number else '-> '}{line}" for number, line in enumerate(advice)]
    return "\n".join(rows)


def summary(results: Sequence[Result]) -> str:
    """How many checks passed, warned and failed, in a line."""
    passed, warned, failed = (sum(result.status == status for result in results) for status in ("pass", "warn", "fail"))
    return f"{len(results)} checks: {passed} passed, {warned} warned, {failed} failed"


def as_json(host: str, results: Sequence[Result]) -> str:
    """All results of one host for a program."""
    return json.dumps({"host": host, "ok": all_ok(results), "results": list(map(asdict, results))}, indent=2)
