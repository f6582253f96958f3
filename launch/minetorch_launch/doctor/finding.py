"""What one check has found, and how findings are shown. Pure."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Finding", "Status", "as_json", "as_row", "failed", "is_well", "passed", "summary", "warned"]

Status = Literal["pass", "warn", "fail"]

_SHOWN = {"pass": "pass", "warn": "warn", "fail": "FAIL"}
_CHECK_WIDTH = 14


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    """What was looked at, in a word or two."""

    status: Status
    found: str
    """What was found, in a line."""

    advice: str = ""
    """What to do about it; empty only for a pass."""

    figures: Mapping[str, object] = field(default_factory=dict)
    """The numbers behind it, for programs; each name ends with its unit, where it has one."""


def passed(check: str, found: str, **figures: object) -> Finding:
    """All is well."""
    return Finding(check, "pass", found, figures=figures)


def warned(check: str, found: str, advice: str, **figures: object) -> Finding:
    """A launch would work, but not as well as it could, or not always."""
    return Finding(check, "warn", found, advice, figures)


def failed(check: str, found: str, advice: str, **figures: object) -> Finding:
    """A launch would not work."""
    return Finding(check, "fail", found, advice, figures)


def is_well(findings: Sequence[Finding]) -> bool:
    """Whether nothing has failed."""
    return all(finding.status != "fail" for finding in findings)


def as_row(finding: Finding, columns: int) -> str:
    """The finding as a row of the table, its advice on rows of its own, none wider than ``columns``."""
    indent = " " * (_CHECK_WIDTH + 8)
    head = f"  {_SHOWN[finding.status]}  {finding.check:<{_CHECK_WIDTH}}"
    rows = _wrapped(finding.found, head, indent, columns)
    if finding.advice:
        rows += _wrapped(finding.advice, f"{indent}-> ", f"{indent}   ", columns)
    return "\n".join(rows)


def summary(findings: Sequence[Finding]) -> str:
    """How many passed, warned and failed, in a line."""
    counts = Counter(finding.status for finding in findings)
    parts = [f"{counts['pass']} passed", _count(counts["warn"], "warning"), _count(counts["fail"], "failure")]
    return f"{_count(len(findings), 'check')}: {', '.join(parts)}"


def as_json(host: str, findings: Sequence[Finding]) -> str:
    """The whole examination for a program."""
    data = {"host": host, "ok": is_well(findings), "findings": [asdict(finding) for finding in findings]}
    return json.dumps(data, indent=2)


def _wrapped(text: str, first: str, rest: str, columns: int) -> list[str]:
    return textwrap.wrap(
        text,
        max(columns, len(first) + 30),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
