"""docs/views.md: its commands run, and it lists every key and state."""

import re
import shlex
from pathlib import Path
from typing import get_args

from minetorch.views.record import State

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs/views.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL) for line in block.splitlines()]


def keys(command):
    return set(re.findall(r"`(\w+)`", re.search(rf"^\| `{command}` \| (.*) \|$", DOCS, re.MULTILINE)[1]))


def test_every_command_runs_and_prints_what_is_listed(command, plans, aws, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plans.rename(tmp_path / "alchemistic_directory")
    aws.client.create_bucket(Bucket="bucket")
    command("cp", "alchemistic_directory/plan-b", "s3://bucket/runs/plan-b")
    for line in COMMANDS:
        program, name, *words = shlex.split(line.replace("--graph accuracy", "--graph loss"))
        assert program == "minetorch"
        if name != "watch":  # which does not end by itself; its own tests start it
            printed = command(name, *words, "--json")
            assert {*printed, *(key for run in printed.get("runs", []) for key in run)} == keys(name)
    assert {path.name for path in tmp_path.iterdir()} >= {"compare.png", "report.html"}


def test_every_state_is_explained():
    table = DOCS.split("| state | when |")[1].split("##")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(get_args(State))


def test_its_pictures_are_there_and_small():
    named = set(re.findall(r"!\[.*?\]\(images/(.*?)\)", DOCS))
    pictures = list((ROOT / "docs/images").glob("*.png"))
    assert named <= {path.name for path in pictures}
    assert all(path.stat().st_size < 150_000 for path in pictures)
