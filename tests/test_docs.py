"""The README is short, and the tests, options and variables that the documents name for the launcher exist."""

import re
from pathlib import Path

import pytest

from minetorch_launch import arguments, environment, errors, exit_codes

ROOT = Path(__file__).parents[1]
LAUNCHER = (ROOT / "docs/launcher.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROOFS = sorted(set(re.findall(r"`([\w./]+\.py)(?:::(\w+))?`", LAUNCHER.split("## What people complain of")[1])))


def test_every_complaint_names_its_proof():
    rows = [line for line in LAUNCHER.splitlines() if line.startswith("| ")]
    complaints = rows[rows.index("| what people report | here | shown by |") + 2 :]
    assert len(complaints) >= 20
    assert all(re.search(r"`[\w./]+\.py(::\w+)?`[^|]*\|$", row) for row in complaints)


@pytest.mark.parametrize(("file", "test"), PROOFS)
def test_a_proof_exists(file, test):
    text = (ROOT / "tests/launch" / file).read_text(encoding="utf-8")
    assert f"def {test or 'test_'}" in text


def words(markdown):
    """The words of a page that are text: without blocks of code, tags and the targets of links."""
    text = re.sub(r"```.*?```|<[^>]*>|\]\([^)]*\)", " ", markdown, flags=re.DOTALL)
    return re.findall(r"\S*\w\S*", text)


def test_the_readme_is_read_in_minutes():
    assert len(words(README)) <= 900
    assert len(re.findall(r"!\[|<img", README)) == 1


def test_the_document_lists_every_option():
    listed = re.findall(r"^\| `(--[\w-]+)", LAUNCHER, re.MULTILINE)
    known = re.findall(r"(?:^|, )\s*(--[\w-]+)", arguments.help_text(), re.MULTILINE)
    assert set(listed) == set(known) - {"--help"}


def test_every_exit_code_is_in_the_one_table():
    table = LAUNCHER.split("## Exit codes")[1].split("\n\n")[1]
    for code in (
        0,
        exit_codes.EXIT_STOPPED_EARLY,
        exit_codes.EXIT_HUNG,
        errors.StartError.exit_code,
        errors.UsageError.exit_code,
    ):
        assert re.search(rf"^\| {code} \|", table, re.MULTILINE), code
    for code in (130, 143, 129):
        assert str(code) in table


def test_the_document_lists_every_variable():
    listed = set(re.findall(r"^\| `(MINETORCH_\w+)`", LAUNCHER, re.MULTILINE))
    assert listed == set(re.findall(r"^(MINETORCH_\w+)", environment.__doc__, re.MULTILINE))


def test_links_within_a_document_lead_somewhere():
    headings = {
        re.sub(r"[^\w-]", "", line[3:].lower().replace(" ", "-")) for line in LAUNCHER.splitlines() if line[:3] == "## "
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", LAUNCHER)) == headings
