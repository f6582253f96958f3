"""`minetorch report`: one page that asks nobody for anything, and in which nothing of a run is markup."""

import re
from html.parser import HTMLParser

import pytest

from minetorch.drawers import Curves
from minetorch.views.page import policy
from minetorch.views.record import Record
from minetorch.views.report import render_run

HOSTILE = """</script><script>alert(1)</script><img src=x onerror=alert(2)>"'&{{ 7*7 }}\N{RIGHT-TO-LEFT OVERRIDE}"""


class Page(HTMLParser):
    """Tags with their attributes, and all text outside of style and script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open not in ("style", "script"):
            self.text += data


def test_a_page_tells_all_that_there_is_of_a_run(command, plans, tmp_path):
    out = tmp_path / "report.html"
    text = command("report", plans / "plan-b", "-o", out)
    assert "plan-b, finished; 2 graphs" in text
    page = Page(out.read_text(encoding="utf-8"))
    for part in (
        "plan-b",
        "finished",
        "4 of 4",
        "optimizer.lr",
        "0.2",
        "epoch_3",
        "best",
        "Ended at step 8",
        "scratch",
    ):
        assert part in page.text, part
    paths = [attrs["d"] for tag, attrs in page.tags if tag == "path"]
    assert [len(re.findall("[ML]", path)) for path in paths] == [8, 4, 4]  # each point once
    facts = command("report", plans / "plan-b", "-o", out, "--json")
    assert facts["points"] == {"loss per step": 8, "loss": 8}


def test_it_asks_no_server_and_its_policy_would_not_let_it(plans):
    text = render_run(Record.open(plans / "plan-a", now=0.0))
    page = Page(text)
    linked = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "action")]
    assert linked == ["data:,"]
    assert "url(" not in text
    assert "@import" not in text
    policies = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [policy()]
    assert "default-src 'none'" in policies[0]
    assert "connect-src" not in policies[0]


def test_nothing_that_a_run_says_is_markup(saved, tmp_path):
    curves = Curves()
    for x in (1, 2):
        curves.add(HOSTILE, HOSTILE, x, x)
        curves.add("</style>", "</title>", x, float("nan"))
    facts = {"metrics": {HOSTILE: 1.0}, "options": {"monitor": HOSTILE, "settings": {HOSTILE: HOSTILE}}}
    store, _ = saved({"drawer": curves.state_dict()}, code="a <b>&'\"", **facts)
    store.write("log.txt", f"{HOSTILE}\n\x1b[31m\xff</pre>\n".encode())
    page = Page(render_run(Record.open(tmp_path / "a <b>&'\"", now=0.0)))
    tags = [tag for tag, _ in page.tags]
    # One for each graph, and the page's own.
    assert tags.count("script") == 3
    assert "img" not in tags
    assert tags.count("pre") == tags.count("title") == tags.count("style") == 1
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.text.count(HOSTILE) >= 6
    assert "49" not in re.sub(r"[\da-f:-]{8,}", "", page.text)


@pytest.mark.parametrize("out", ["report.pdf", "/nowhere/report.html"])
def test_a_wrong_name_is_one_clear_error(command, plans, out):
    assert f"--out {out}" in command("report", plans / "plan-a", "-o", out, expect=2)


def test_a_run_without_a_checkpoint_has_a_page(tmp_path):
    (tmp_path / "run/models").mkdir(parents=True)
    (tmp_path / "run/log.txt").write_text("INFO begun\n")
    page = Page(render_run(Record.open(tmp_path / "run", now=0.0)))
    assert "Nothing is drawn yet" in page.text
    assert "INFO begun" in page.text
