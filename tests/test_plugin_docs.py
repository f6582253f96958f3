"""Every snippet of docs/plugins.md, run after its first block, each in a folder of its own."""

import re
from pathlib import Path

import pytest

from minetorch import plugins

TEXT = (Path(__file__).parents[1] / "docs/plugins.md").read_text(encoding="utf-8")
PARTS, *SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
HEADINGS = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)


def test_every_plugin_has_a_section_with_a_snippet():
    assert {*HEADINGS} == {*plugins.__all__, "Your own"} - {"negative_margin"}
    assert len(SNIPPETS) == len(HEADINGS)


@pytest.mark.slow
@pytest.mark.parametrize(("heading", "snippet"), list(zip(HEADINGS, SNIPPETS, strict=True)), ids=HEADINGS)
def test_a_snippet_runs(heading, snippet, tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    exec(compile(f"{PARTS}\n{snippet}", f"docs/plugins.md: {heading}", "exec"), {"__name__": "snippet"})
    assert "Epoch 3" in (tmp_path / "runs/default/log.txt").read_text()
