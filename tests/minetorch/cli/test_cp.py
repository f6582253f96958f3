import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from minetorch.checkpoint import Store
from minetorch.errors import StorageError


def files(folder):
    """All but what says who wrote the run, which is of the original alone."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "writers"]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def copied(facts):
    return [step["name"] for step in facts["list"] if step["kind"] == "checkpoint" and step["action"] == "copied"]


def test_everything_comes_along(command, runs, tmp_path):
    text = command("cp", runs / "plan-a", tmp_path / "copies/plan-a")
    assert f"4 checkpoints at {tmp_path}/copies/plan-a, verified; " in text
    assert files(tmp_path / "copies/plan-a") == files(runs / "plan-a")
    for path in (runs / "plan-a/models").iterdir():
        if path.is_symlink():
            assert (tmp_path / "copies/plan-a/models" / path.name).readlink() == path.readlink()


def test_to_s3_and_to_s3_and_back(command, runs, aws, memory_url, tmp_path):
    for source, target in (
        (runs / "plan-a", f"{aws.url}/a"),
        (f"{aws.url}/a", f"{aws.url}/runs/b"),
        (f"{aws.url}/runs/b", f"{memory_url}/c"),
        (f"{memory_url}/c", tmp_path / "back"),
    ):
        facts = command("cp", source, target, "--json")
        assert len(copied(facts)) == 4
        assert facts["size"] > 0
    assert files(tmp_path / "back") == files(runs / "plan-a")


def test_the_options_of_both_ends(command, runs, bucket):
    there = [word for key, value in bucket.options.items() for word in ("--to-storage-option", f"{key}={value}")]
    command("cp", runs / "plan-a", f"{bucket.url}/a", *there)
    both = [word.replace("--to-", "--") for word in there]
    assert copied(command("cp", f"{bucket.url}/a", f"{bucket.url}/b", *both, "--json"))


def test_only_some(command, runs, tmp_path):
    command("cp", runs / "plan-a", tmp_path / "copy", "--only", "mine", "epoch_1")
    facts = command("ls", tmp_path / "copy", "--json")
    assert [item["epoch"] for item in facts["list"]] == [1, 2]
    assert set(facts["names"]) == {"latest", "best", "mine", "epoch_1", "epoch_2"}
    assert set(facts["names"].values()) == {item["name"] for item in facts["list"]}
    assert "there is no checkpoint 'bst'" in command("cp", runs / "plan-a", tmp_path / "no", "--only", "bst", expect=1)
    assert not (tmp_path / "no").exists()


def test_goes_on_where_it_stopped(command, runs, tmp_path, monkeypatch):
    """The storage fails at each of its writes in turn; whatever is there then is whole, and nothing is copied twice."""
    target, write = tmp_path / "copy", Store.write_stream
    failures = 0

    def fail_at(number):
        calls = 0

        def write_stream(store, name, writer, expected):
            nonlocal calls, failures
            calls += 1
            if calls == number:
                failures += 1
                raise StorageError("cannot write: no space left")
            write(store, name, writer, expected)

        return write_stream

    done = set()
    for number in range(1, 30):
        before = failures
        monkeypatch.setattr(Store, "write_stream", fail_at(number))
        shutil.rmtree(target, ignore_errors=True)
        command("cp", runs / "plan-a", target, expect=1 if number < 15 else 0)
        monkeypatch.setattr(Store, "write_stream", write)
        if failures == before:
            break
        manifests = [path.stem for path in target.rglob("models/g*.json")]
        if manifests:
            assert command("verify", target, "--json")["bad"] == 0
        written = {path.stem for path in target.rglob("models/g*.curves")}  # after the payload
        facts = command("cp", runs / "plan-a", target, "--json")
        assert not set(copied(facts)) & written
        assert files(target) == files(runs / "plan-a")
        done.add(len(manifests))
    assert failures == 14  # the log, a graph, and for each of 4 checkpoints a payload, curves and a manifest
    assert done == {0, 1, 2, 3}


def test_brings_a_copy_up_to_date(command, runs, tmp_path):
    command("cp", runs / "plan-a", tmp_path / "copy", "--only", "epoch_1")
    assert len(copied(command("cp", runs / "plan-a", tmp_path / "copy", "--json"))) == 3
    assert copied(command("cp", runs / "plan-a", tmp_path / "copy", "--json")) == []


def test_what_was_damaged_there_is_replaced(command, runs, tmp_path):
    command("cp", runs / "plan-a", tmp_path / "copy")
    payload = Path(tmp_path / "copy/models/mine.pth.tar").resolve()
    payload.write_bytes(b"short")
    facts = command("cp", runs / "plan-a", tmp_path / "copy", "--json")
    assert copied(facts) == [payload.name.removesuffix(".pth.tar")]
    assert command("verify", tmp_path / "copy", "--json")["bad"] == 0


def test_what_is_damaged_here_is_left_out(command, runs, tmp_path):
    payload = Path(runs / "plan-a/models/mine.pth.tar").resolve()
    data = bytearray(payload.read_bytes())
    data[-30] ^= 1
    payload.write_bytes(data)
    facts = command("cp", runs / "plan-a", tmp_path / "copy", "--json", expect=1)
    (broken,) = [step for step in facts["list"] if step["action"] == "broken"]
    assert broken["name"] == payload.name.removesuffix(".pth.tar")
    assert "its digest does not match" in broken["problem"]
    assert facts["broken"] == 1
    assert not (tmp_path / "copy/models" / payload.name).exists()
    assert command("verify", tmp_path / "copy", "--json")["bad"] == 0
    assert "BROKEN" in command("cp", runs / "plan-a", tmp_path / "copy", expect=1)


def test_a_storage_that_damages_what_it_takes_is_found_out(command, runs, memory_url, monkeypatch):
    pipe = MemoryFileSystem.pipe_file

    def damage(fs, path, value, **options):
        pipe(fs, path, bytes([*value[:-30], value[-30] ^ 1, *value[-29:]]), **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", damage)
    text = command("cp", runs / "plan-a", f"{memory_url}/copy", expect=1)
    assert "does not hold what was written to it" in text
    assert Store.open(f"{memory_url}/copy").child("models").list() == []


def test_unfinished_files_are_left_out(command, runs, tmp_path):
    (runs / "plan-a/models/g0001-000009-s000000009-abcdef.pth.tar").write_bytes(b"x")
    facts = command("cp", runs / "plan-a", tmp_path / "copy", "--json")
    assert facts["left_out"] == ["g0001-000009-s000000009-abcdef.pth.tar"]
    assert "left out" in command("cp", runs / "plan-a", tmp_path / "copy")


def test_what_killed_copies_left_is_deleted_and_a_copy_that_is_being_written_is_not(command, runs, tmp_path):
    target = tmp_path / "copy"
    left = [target / folder / ".minetorch-tmp-0123" for folder in (".", "graph", "models")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a part")
    script = (
        "import sys\nfrom minetorch.checkpoint import Store\n"
        "def write(file):\n    file.write(b'a part')\n    print('writing', flush=True)\n    input()\n"
        "Store.open(sys.argv[1]).write_stream('x', write)"
    )
    command_line = [sys.executable, "-c", script, target / "models"]
    with subprocess.Popen(command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"writing\n"
        (writing,) = {*target.glob("models/.minetorch-tmp-*")} - {*left}
        command("cp", runs / "plan-a", target)
        assert [*target.rglob(".minetorch-tmp-*")] == [writing]
        other.kill()
    command("cp", runs / "plan-a", target)
    assert not [*target.rglob(".minetorch-tmp-*")]
    assert files(target) == files(runs / "plan-a")


def test_a_run_below_is_not_part_of_it(command, runs, tmp_path):
    shutil.copytree(runs / "mnist/plan-b", runs / "plan-a/finer", symlinks=True)
    command("cp", runs / "plan-a", tmp_path / "copy")
    assert not (tmp_path / "copy/finer").exists()


@pytest.mark.parametrize("target", [".", "models", "models/deeper"])
def test_not_into_itself(command, runs, target):
    before = files(runs)
    assert "is the run itself, or within it" in command("cp", runs / "plan-a", runs / "plan-a" / target, expect=2)
    assert files(runs) == before


def test_not_over_other_runs(command, runs, tmp_path):
    before = files(runs)
    text = command("cp", runs / "plan-a", runs / "mnist/plan-b", expect=1)
    assert "holds another run's checkpoints" in text
    text = command("cp", runs / "mnist/plan-b", runs, expect=2)
    assert f"is a folder of runs (plan-a): give the copy a directory of its own, such as {runs}/plan-b" in text
    assert files(runs) == before


def test_not_over_a_copy_that_has_gone_on(command, runs, tmp_path):
    shutil.copytree(runs / "plan-a", tmp_path / "copy", symlinks=True)
    newest = max((runs / "plan-a/models").glob("g*.json"))
    newest.unlink()
    text = command("cp", runs / "plan-a", tmp_path / "copy", expect=1)
    assert "has gone on by itself" in text
