"""docs/prove.md: every option and every key that it lists is there, and no other."""

import argparse
import dataclasses
import re
from pathlib import Path

from minetorch.cli import prove
from minetorch.prove.comparing import Comparison, Difference, EndDifference
from minetorch.prove.verdict import End, Mended, RunProof, Samples, Verdict

DOCS = (Path(__file__).parents[3] / "docs/prove.md").read_text()


def keys(row):
    text = re.sub(r"\(`exact` or `differs`\)", "", re.search(rf"^\| {re.escape(row)} \| (.*) \|$", DOCS, re.M)[1])
    return set(re.findall(r"`(\w+)`", text))


def fields(kind):
    return {field.name for field in dataclasses.fields(kind)}


def test_every_option_is_listed():
    commands = argparse.ArgumentParser().add_subparsers()
    prove.add_to(commands)
    known = {name for action in commands.choices["prove"]._actions for name in action.option_strings}
    assert set(re.findall(r"^\| `(--[\w-]+)", DOCS, re.M)) == known - {"-h", "--help"}


def test_every_key_is_listed():
    assert keys("the proof") == {"verdict"} | fields(Verdict)
    assert keys("each of `runs`") == {"exact", "kind", "advice"} | fields(RunProof)
    assert keys("`comparison`") == fields(Comparison)
    assert keys("`difference`") == fields(Difference)
    assert keys("`samples`") == fields(Samples)
    assert keys("`end`") == fields(End) | fields(EndDifference)
    assert keys("each of `mended`") == fields(Mended)


def test_the_headings_are_those_that_are_linked():
    headings = {re.sub(r"[^\w-]", "", line[3:].lower().replace(" ", "-")) for line in re.findall(r"^## .*", DOCS, re.M)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", DOCS)) == headings
