"""The command line itself: help, mistakes, exit codes, and how soon it answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ("ls", "show", "verify", "export", "prune", "cp")


def test_help_names_every_command(command, capsys):
    with pytest.raises(SystemExit) as ended:
        command("--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"    {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_and_storage_options(command, capsys, name):
    with pytest.raises(SystemExit) as ended:
        command(name, "--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--json", "--storage-option KEY=VALUE", "--storage-options-file FILE"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "COMMAND"),
        (["bla"], "invalid choice: 'bla'"),
        (["ls"], "URL: type minetorch ls --help"),
        (["ls", "x", "y"], "one argument too many"),
        (["ls", "x", "--jsno"], "did you mean --json?"),
        (["export", "x", "latest", "y", "--out", "z"], "unknown option --out: type minetorch --help for the options"),
        (["ls", "x", "--storage-optoin=secret=hunter2"], "did you mean --storage-option?"),
        (["ls", "x", "--storage-option", "hunter2"], "takes KEY=VALUE"),
        (["ls", "x", "--storage-option", "a b=hunter2"], "takes KEY=VALUE"),
        (["ls", "x", "--storage-option", "a=1", "--storage-option", "a.b=hunter2"], "'a' was given a plain value"),
        (["ls", "x", "--storage-options-file", "nowhere"], "cannot read the storage options in nowhere: No such file"),
        (["ls", "x", "--depth", "-1"], "--depth -1: give a whole number"),
        (["ls", "x", "--depth", "two"], "--depth two: give a whole number"),
        (["ls", "nosuch://x"], "no storage is known as nosuch://"),
        (["show", ""], "a path or URL is needed"),
        (["prune", "x"], "say what to keep"),
        (["prune", "x", "--keep-last", "0"], "--keep-last 0: give a whole number, 1 or more"),
        (["prune", "x", "--keep-best", "1", "--mode", "low"], "--mode low: give min or max"),
        (["export", "x", "best", "w.safetensors", "--all"], "a safetensors file holds tensors only"),
    ],
)
def test_a_mistake_is_one_line_without_secrets(command, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = command(*words, expect=2)
    assert said in text
    assert text.startswith("minetorch: error: ")
    assert "hunter2" not in text
    assert list(tmp_path.iterdir()) == []


def test_storage_options_from_a_file(command, tmp_path, memory_url):
    file = tmp_path / "options.json"
    file.write_text('["hunter2"]')
    assert "hunter2" not in command("ls", memory_url, "--storage-options-file", file, expect=2)
    file.write_text('{"secret": "hunter2"')
    text = command("ls", memory_url, "--storage-options-file", file, expect=2)
    assert "must hold one JSON object" in text
    assert "hunter2" not in text


def test_options_reach_the_storage(command, runs, s3_server, bucket, tmp_path):
    file = tmp_path / "options.json"
    file.write_text(
        json.dumps({"key": s3_server.key, "secret": s3_server.secret, "endpoint_url": "http://127.0.0.1:1"})
    )
    options = ("--storage-options-file", file, "--storage-option", f"endpoint_url={s3_server.url}")
    command("cp", runs / "plan-a", f"{bucket.url}/plan-a", *options)
    assert command("ls", f"{bucket.url}/plan-a", *options, "--json")["checkpoints"] == 4


def test_a_storage_that_cannot_be_listed_is_an_error(command, tmp_path, bucket):
    (tmp_path / "file").write_text("")
    assert "cannot list" in command("ls", tmp_path / "file", expect=1)
    options = [word for key, value in bucket.options.items() for word in ("--storage-option", f"{key}={value}")]
    text = command("ls", "s3://no-such-bucket/runs", *options, expect=1)
    assert "cannot list s3://no-such-bucket/runs: there is no such bucket" in text
    wrong = [word.replace("secret=", "secret=hunter2") for word in options]
    text = command("ls", bucket.url, *wrong, expect=1)
    assert f"cannot list {bucket.url}: " in text
    assert "signature" in text
    assert "hunter2" not in text
    assert bucket.options["secret"] not in text


def script(*words, **options):
    program = Path(sys.executable).parent / "minetorch"
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=120, **options)


def test_the_script_answers_without_torch(tmp_path, runs):
    """Where importing torch fails, all that needs none of it still works."""
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert "usage: minetorch" in script("--help", env=environ).stdout
    assert script("lst", env=environ).returncode == 2
    assert script("show", runs / "plan-c", env=environ).returncode == 1
    for words in (
        ["--version"],
        ["ls", runs],
        ["show", runs / "plan-a"],
        ["prune", runs / "plan-a", "--keep-last", "1"],
        ["cp", runs / "plan-a", tmp_path / "copy"],
    ):
        done = script(*words, env=environ)
        assert done.returncode == 0, done
    done = script("verify", runs / "plan-a", env=environ)
    assert "torch was imported" in done.stderr


def test_a_reader_that_has_seen_enough_is_no_failure(runs):
    program = Path(sys.executable).parent / "minetorch"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([program, "ls", runs], stdout=write, stderr=subprocess.PIPE, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
