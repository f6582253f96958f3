import logging
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from minetorch.checkpoint import Store
from minetorch.checkpoint.claim import Process, started_at
from minetorch.checkpoint.fence import Fence


def lines(text):
    return [line.split() for line in text.splitlines()]


def test_lists_runs(command, runs):
    text = command("ls", runs)
    assert lines(text)[0] == ["RUN", "STATUS", "CHECKPOINTS", "SIZE", "STEP", "EPOCH", "BEST", "AGE"]
    assert [row[0] for row in lines(text)[1:]] == ["mnist/plan-b", "plan-a"]
    listed = command("ls", runs, "--json")
    assert listed["url"] == str(runs)
    plan_b, plan_a = listed["runs"]
    assert set(plan_a) == {
        "run", "url", "status", "checkpoints", "size", "modified", "step", "epoch", "best", "names",
    }  # fmt: skip
    assert (plan_a["run"], plan_a["url"]) == ("plan-a", str(runs / "plan-a"))
    assert (plan_a["checkpoints"], plan_a["step"], plan_a["epoch"]) == (4, 6, 3)
    assert set(plan_a["names"]) == {"latest", "best", "mine", "epoch_1", "epoch_2", "epoch_3"}
    assert plan_a["best"]["epoch"] == 3
    best = plan_a["best"]
    assert (best["monitor"], best["mode"]) == ("val_loss", "min")
    assert f"lowest val_loss {best['metrics']['val_loss']:.5g} (epoch 3)" in text
    assert plan_a["size"] == sum(path.stat().st_size for path in (runs / "plan-a/models").glob("g*"))
    assert plan_b["run"] == "mnist/plan-b"


def test_lists_the_checkpoints_of_a_run(command, runs):
    text = command("ls", runs / "plan-a")
    assert lines(text)[0] == ["CHECKPOINT", "STATUS", "SIZE", "STEP", "EPOCH", "METRICS", "NAMES", "AGE"]
    assert "best, epoch_3, latest" in text
    assert len(lines(text)) == 5
    without_age = [line[:-2] for line in lines(text)]  # such as "7 s"
    assert [line[:-2] for line in lines(command("ls", runs / "plan-a/models"))] == without_age
    facts = command("ls", runs / "plan-a", "--json")
    assert facts["run"] == "plan-a"
    named = {name: item for item in facts["list"] for name in item["names"]}
    assert [item["step"] for item in facts["list"]] == sorted(item["step"] for item in facts["list"])
    assert {item["status"] for item in facts["list"]} == {"complete"}
    assert named["mine"]["epoch"] == 2
    assert named["best"]["url"] == str((runs / "plan-a/models/best.pth.tar").resolve())


def test_looks_no_deeper_than_asked(command, runs):
    assert [run["run"] for run in command("ls", runs, "--depth", "1", "--json")["runs"]] == ["plan-a"]


def test_finds_a_run_that_is_linked_to(command, runs, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (runs / "plan-a").rename(tmp_path / "elsewhere/plan-a")
    (runs / "plan-a").symlink_to(tmp_path / "elsewhere/plan-a")
    assert [run["run"] for run in command("ls", runs, "--json")["runs"]] == ["mnist/plan-b", "plan-a"]


@pytest.fixture
def waiting():
    """A process that does nothing until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def statuses(command, place):
    facts = command("ls", place, "--json")
    return [item["status"] for item in facts.get("runs") or facts["list"]]


def age(folder, seconds):
    then = time.time() - seconds
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.utime(path, (then, then))


def claim(run, process):
    fence = Fence(Store.open(run).child("models"), logger=logging.getLogger("tests"), process=process)
    assert fence.claim("replace")


def test_a_run_whose_process_lives_is_running(command, runs, waiting):
    assert statuses(command, runs) == ["complete", "complete"]
    claim(runs / "plan-a", replace(Process.this(), pid=waiting.pid, started=started_at(waiting.pid)))
    (runs / "plan-a/models/g0002-000001-s000000009-abcdef.pth.tar").write_bytes(b"being written")
    assert statuses(command, runs) == ["complete", "running?"]
    assert statuses(command, runs / "plan-a") == ["complete"] * 4 + ["running?"]
    age(runs, 86_400)
    assert statuses(command, runs) == ["complete", "running?"]
    waiting.kill()
    waiting.communicate()
    assert statuses(command, runs) == ["complete", "complete"]
    assert statuses(command, runs / "plan-a") == ["complete"] * 4 + ["unfinished"]


def test_on_another_machine_signs_of_life_tell(command, runs):
    claim(runs / "plan-a", Process("elsewhere", 5, "1", "another machine"))
    assert statuses(command, runs) == ["complete", "running?"]
    age(runs, 3600)
    assert statuses(command, runs) == ["complete", "complete"]
    text = command("show", runs / "plan-a")
    assert "elsewhere" in text


def test_a_run_that_tells_nothing_of_its_writers(command, runs):
    shutil.rmtree(runs / "plan-a/models/writers")
    age(runs, 0)
    assert statuses(command, runs) == ["complete", "running?"]
    age(runs, 3600)
    assert statuses(command, runs) == ["complete", "complete"]


def test_a_broken_run(command, runs):
    (runs / "plan-a/models/latest.pth.tar").resolve().write_bytes(b"short")
    items = command("ls", runs / "plan-a", "--json")["list"]
    assert [item["status"] for item in items] == ["complete"] * 3 + ["broken"]
    assert "5 of" in items[3]["problem"]
    assert statuses(command, runs) == ["complete", "broken"]


def test_a_damaged_manifest_and_a_lost_payload(command, runs):
    models = runs / "plan-a/models"
    first, second, *_ = sorted(models.glob("g*.json"))
    first.write_text("{}")
    second.with_suffix(".pth.tar").unlink()
    items = command("ls", runs / "plan-a", "--json")["list"]
    assert [item["status"] for item in items[:3]] == ["broken", "broken", "complete"]
    assert items[0]["step"] is None
    assert "is not a manifest" in items[0]["problem"]
    assert items[1]["problem"] == "its payload is missing"


def test_no_run_at_all(command, tmp_path, memory_url):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "nowhere", memory_url):
        assert f"there is no run at {place}" in command("ls", place, expect=1)


def test_a_folder_that_cannot_be_read_is_told(command, runs, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("mnist"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    text = command("ls", runs, expect=1)
    assert "plan-a" in text
    assert f"minetorch: cannot list {runs}/mnist: [Errno 13] Permission denied" in text


def test_a_run_without_a_checkpoint(command, runs):
    (runs / "new/models").mkdir(parents=True)
    (runs / "new/log.txt").write_text("started")
    assert "has no checkpoint yet" in command("ls", runs / "new")
    assert {run["run"]: run["checkpoints"] for run in command("ls", runs, "--json")["runs"]}["new"] == 0


def test_a_run_that_has_only_just_been_started(command, runs):
    claim(runs / "new", None)
    assert "has no checkpoint yet" in command("ls", runs / "new")
    (runs / "zoo/models").mkdir(parents=True)
    assert [run["run"] for run in command("ls", runs, "--json")["runs"]] == ["mnist/plan-b", "new", "plan-a"]


def test_other_storages(command, runs, memory_url, aws):
    for place in (memory_url, aws.url):
        command("cp", runs / "plan-a", f"{place}/runs/plan-a")
        command("cp", runs / "mnist/plan-b", f"{place}/runs/mnist/plan-b")
        assert [run["run"] for run in command("ls", place, "--json")["runs"]] == ["runs/mnist/plan-b", "runs/plan-a"]
        assert command("ls", f"{place}/runs/plan-a/models", "--json")["checkpoints"] == 4
        assert Store.open(f"{place}/runs/plan-a").list() == ["graph", "log.txt", "models"]
