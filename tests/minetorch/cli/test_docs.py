"""docs/checkpoints.md: every command in it is run, and every key and field that it lists is there."""

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import minetorch
from minetorch.checkpoint import Manifest

DOCS = (Path(__file__).parents[3] / "docs/checkpoints.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL) for line in block.splitlines()]
(SCRIPT,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)


@pytest.fixture
def workplace(trained_runs, aws, tmp_path, monkeypatch):
    """A folder as the documents assume it, and the bucket called `bucket`."""
    shutil.copytree(trained_runs, tmp_path / "alchemistic_directory", symlinks=True)
    (tmp_path / "options.json").write_text(json.dumps(aws.options))
    profile = f"[lab]\naws_access_key_id = {aws.options['key']}\naws_secret_access_key = {aws.options['secret']}\n"
    (tmp_path / "credentials").write_text(profile)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.chdir(tmp_path)
    aws.client.create_bucket(Bucket="bucket")
    return tmp_path


def keys(row):
    table = DOCS.split("### For programs")[1]
    return set(re.findall(r"`(\w+)`", re.search(rf"^\| {re.escape(row)} \| (.*) \|$", table, re.MULTILINE)[1]))


def test_every_command_runs_in_order(command, workplace):
    assert {line.split()[1] for line in COMMANDS} == {"ls", "show", "verify", "export", "prune", "cp"}
    for line in COMMANDS:
        program, *words = shlex.split(line)
        assert program == "minetorch"
        assert command(*words), line
    assert command("verify", "elsewhere/plan-a", "--json")["bad"] == 0
    assert {path.name for path in workplace.iterdir()} >= {"weights.pth", "weights.safetensors", "all.pth"}


def test_the_script_runs(workplace, capsys):
    exec(compile(SCRIPT, "checkpoints.md", "exec"), {})
    assert "weight" in capsys.readouterr().out


def test_every_key_is_there(command, workplace):
    run = "alchemistic_directory/plan-a"
    listed = command("ls", "alchemistic_directory", "--json")
    assert {*listed, *listed["runs"][0]} == keys("`ls URL`")
    shown = command("show", run, "--json")
    assert set(shown) == set(listed["runs"][0]) | {"writers", "list"}
    assert set(command("ls", run, "--json")) == set(shown) - {"writers"}
    assert {*shown["writers"][0], "writers"} == keys("`show RUN`")
    assert set(shown["list"][0]) == keys("a checkpoint")
    inside = command("show", run, "best", "--json")
    assert set(inside) == keys("a checkpoint") | {"contents"}
    assert {*inside["contents"]["state_dict"][0], "contents"} == keys("`show RUN NAME`")
    verified = command("verify", run, "--json")
    assert {*verified, *verified["list"][0]} == keys("`verify`")
    assert set(command("export", run, "best", "x.pth", "--json")) == keys("`export`")
    pruned = command("prune", run, "--keep-last", "1", "--json")
    assert {*pruned, *pruned["dropped"][0]} == keys("`prune`")
    copied = command("cp", run, "copy", "--json")
    assert {*copied, *copied["list"][0]} == keys("`cp`")


def test_the_manifest_and_the_state_are_as_documented(workplace):
    fields = {field.name for field in dataclasses.fields(Manifest)} | {"seal"}
    manifest = next(Path("alchemistic_directory/plan-a/models").glob("g*.json"))
    assert set(json.loads(manifest.read_bytes())) == fields
    part = DOCS.split("## The manifest")[1].split("## What is guaranteed")[0]
    assert {name for cell in re.findall(r"^\| (`.*?) \|", part, re.M) for name in re.findall(r"\w+", cell)} == fields
    part = DOCS.split("| key | what it holds |")[1].split("## The manifest")[0]
    named = {name for cell in re.findall(r"^\| (`.*?) \|", part, re.M) for name in re.findall(r"\w+", cell)}
    assert named - {"scaler", "virtual_shards"} == set(minetorch.load("alchemistic_directory/plan-a"))
