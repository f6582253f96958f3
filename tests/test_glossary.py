"""The glossary stays short, and holds only words that are in use."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "docs/glossary.md"
TERMS = dict(re.findall(r"^- \*\*(.+?)\*\*: (.+)$", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE))
MOST = 30


@pytest.fixture(scope="module")
def texts():
    """All that the glossary speaks of: the pages and the code."""
    pages = [ROOT / "README.md", *(page for page in (ROOT / "docs").rglob("*.md") if page != GLOSSARY)]
    code = [file for folder in ("minetorch", "launch") for file in (ROOT / folder).rglob("*.py")]
    return "\n".join(file.read_text(encoding="utf-8") for file in [*pages, *code])


def test_there_are_few_terms_and_each_line_is_one():
    lines = [line for line in GLOSSARY.read_text(encoding="utf-8").splitlines() if line.startswith("- ")]
    assert 1 <= len(TERMS) <= MOST
    assert len(TERMS) == len(lines)


@pytest.mark.parametrize("term", TERMS)
def test_a_term_has_one_sentence_and_is_in_use(term, texts):
    assert re.fullmatch(r"[A-Z](?:[^.]|\.(?! ))*\.", TERMS[term])
    words = r"\s+".join(map(re.escape, term.split()))
    assert re.search(rf"\b{words}s?\b", texts, re.IGNORECASE)


def test_the_site_has_it():
    assert "glossary.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
