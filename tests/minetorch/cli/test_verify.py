import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minetorch.checkpoint import Manifest, Store
from minetorch.checkpoint.digest import digest_of
from minetorch.checkpoint.local_disk import LocalDisk


def newest(runs):
    return Path(runs / "plan-a/models/latest.pth.tar").resolve()


def recommit(payload):
    """Make a manifest say that these bytes are what was saved."""
    file = payload.parent / payload.name.replace(".pth.tar", ".json")
    manifest = Manifest.from_json(file.read_bytes())
    data = payload.read_bytes()
    file.write_bytes(dataclasses.replace(manifest, size=len(data), digest=digest_of(data)).to_json())


def test_a_good_run(command, runs):
    text = command("verify", runs / "plan-a")
    assert text.count(" good\n") == 4
    facts = command("verify", runs / "plan-a", "--json")
    assert facts["bad"] == 0
    assert set(facts["list"][0]) == {"name", "size", "good", "problem"}
    assert [item["good"] for item in command("verify", runs / "plan-a", "mine", "--json")["list"]] == [True]


def bad(command, runs):
    facts = command("verify", runs / "plan-a", "--json", expect=1)
    assert facts["bad"] == 1
    assert [item["good"] for item in facts["list"]] == [True] * 3 + [False]
    text = command("verify", runs / "plan-a", expect=1)
    assert "BAD: " in text
    return text
    assert command("verify", runs / "plan-a", "epoch_1", "--json")["bad"] == 0
    return facts["list"][-1]["problem"]


def test_a_truncated_one(command, runs):
    newest(runs).write_bytes(newest(runs).read_bytes()[:-100])
    assert "is truncated" in bad(command, runs)


def test_a_flipped_bit(command, runs):
    data = bytearray(newest(runs).read_bytes())
    data[len(data) // 2] ^= 1
    newest(runs).write_bytes(data)
    assert "its digest does not match" in bad(command, runs)


def test_a_missing_one(command, runs):
    newest(runs).unlink()
    assert "is missing" in bad(command, runs)


def test_a_damaged_manifest(command, runs):
    manifest = max((runs / "plan-a/models").glob("g*.json"))
    manifest.write_text(manifest.read_text().replace('"epoch": 3', '"epoch": 4'))
    assert "its seal does not match" in bad(command, runs)


def test_one_that_the_run_drops_meanwhile_is_not_bad(command, runs, monkeypatch):
    read, first = Store.read_range, min((runs / "plan-a/models").glob("g*.json"))

    def drop_and_read(*arguments):
        for file in (first, first.with_suffix(".pth.tar")):
            file.unlink(missing_ok=True)
        return read(*arguments)

    monkeypatch.setattr(Store, "read_range", drop_and_read)
    facts = command("verify", runs / "plan-a", "--json")
    assert (facts["bad"], len(facts["list"])) == (0, 3)


def test_one_with_code_in_it(command, runs):
    file = io.BytesIO()
    torch.save({"state_dict": {}, "print": print}, file)
    newest(runs).write_bytes(file.getvalue())
    recommit(newest(runs))
    assert "contains code" in bad(command, runs)


def test_one_that_is_no_checkpoint(command, runs):
    newest(runs).write_bytes(b"garbage " * 100)
    recommit(newest(runs))
    assert "cannot be read as a checkpoint" in bad(command, runs)


@pytest.mark.slow
def test_needs_no_memory_for_the_tensors(tmp_path):
    """A state of 300 MB is verified and shown in less than half of that."""
    script = f"""
import logging, resource, sys, torch
from minetorch.checkpoint import Checkpointer, Store
from minetorch.cli import main
if sys.argv[1] == "save":
    run = Checkpointer(Store.open({str(tmp_path)!r}).child("run", "models"), logger=logging.getLogger("tests"))
    state = {{"state_dict": {{str(i): torch.zeros(12_500_000) for i in range(6)}}}}
    run.save(state, step=1, epoch=1, epoch_complete=True, position=0, world_size=1, metrics={{}})
else:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["verify", {str(tmp_path / "run")!r}]) == 0
    assert main(["show", {str(tmp_path / "run")!r}, "latest"]) == 0
    print("used", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    for mode in ("save", "verify"):
        done = subprocess.run([sys.executable, "-c", script, mode], capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, done
    assert int(done.stdout.split("used ")[1]) < 150 * 1024  # KiB


def test_on_s3(command, runs, aws):
    command("cp", runs / "plan-a", f"{aws.url}/plan-a")
    assert command("verify", f"{aws.url}/plan-a", "--json")["bad"] == 0
    name = newest(runs).name
    data = bytearray(newest(runs).read_bytes())
    data[-30] ^= 1
    aws.client.put_object(Bucket=aws.name, Key=f"plan-a/models/{name}", Body=bytes(data))
    facts = command("verify", f"{aws.url}/plan-a", "--json", expect=1)
    assert [item["name"] for item in facts["list"] if not item["good"]] == [name.removesuffix(".pth.tar")]


def test_a_storage_that_fails_is_not_called_a_damaged_checkpoint(command, runs, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(LocalDisk, "read_range", fail)
    text = command("verify", runs / "plan-a", expect=1)
    assert "minetorch: error: cannot read" in text
    assert "Input/output error" in text
    text = command("show", runs / "plan-a", "best", expect=1)
    assert "minetorch: error: cannot read" in text


def test_curves_that_are_damaged_or_missing(command, runs):
    """Every command says so, and none of them loses the weights."""
    file = newest(runs).with_name(newest(runs).name.replace(".pth.tar", ".curves"))
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    assert "its digest does not match" in bad(command, runs)
    file.unlink()
    assert f"{file.name} is missing, though its manifest is there" in bad(command, runs)
    listed = command("ls", runs / "plan-a", "--json")["list"][-1]
    assert (listed["status"], listed["problem"]) == ("broken", "its file of curves is missing")
    assert command("show", runs / "plan-a", "latest", "--json")["curves"]["name"] == file.name
    command("export", runs / "plan-a", "latest", runs / "weights.pth")
    assert "weight" in torch.load(runs / "weights.pth", weights_only=True)
