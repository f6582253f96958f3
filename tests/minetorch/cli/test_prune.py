import logging

import pytest
import torch

from minetorch.checkpoint import Checkpointer, Store


def names(command, run):
    return [item["name"] for item in command("ls", run, "--json")["list"]]


def test_drops_what_has_no_name(command, runs):
    run = runs / "plan-a"
    before = names(command, run)
    sizes = {item["name"]: item["size"] for item in command("ls", run, "--json")["list"]}
    named = {name: target for name, target in command("ls", run, "--json")["names"].items() if "epoch_" not in name}
    would = command("prune", run, "--keep-last", "1", "--dry-run", "--json")
    assert names(command, run) == before
    done = command("prune", run, "--keep-last", "1", "--json")
    assert done == {**would, "dry_run": False}
    assert names(command, run) == done["kept"] == [name for name in before if name in named.values()]
    assert [item["name"] for item in done["dropped"]] == [name for name in before if name not in done["kept"]]
    assert done["size"] == sum(sizes[item["name"]] for item in done["dropped"]) > 0
    after = command("ls", run, "--json")["names"]
    assert {name: after[name] for name in named} == named
    files = {path.name for path in (run / "models").glob("g*") if path.is_file()}
    assert files == {f"{name}{suffix}" for name in done["kept"] for suffix in (".json", ".curves", ".pth.tar")}
    for link in (run / "models").iterdir():
        if link.is_symlink():
            assert "state_dict" in torch.load(link, weights_only=True)
    assert "Dropped 0 checkpoints, 0 B (0 bytes); 2 stay." in command("prune", run, "--keep-last", "1")


def test_keeps_the_best_by_any_metric(command, runs):
    run = runs / "plan-a"
    done = command("prune", run, "--keep-best", "1", "--monitor", "train_loss", "--mode", "max", "--dry-run", "--json")
    epochs = [item["epoch"] for item in done["dropped"]]
    assert epochs == [2]  # the first has the highest loss, the newest is kept, and one of the second has a name
    text = command("prune", run, "--keep-best", "1", "--monitor", "accuracy", expect=2)
    assert "--monitor accuracy: no checkpoint of this run has this metric; there are train_loss, val_loss" in text


def test_keeps_every_so_many(command, runs):
    kept = command("prune", runs / "plan-a", "--keep-last", "1", "--keep-every", "1", "--dry-run", "--json")["kept"]
    assert len(kept) == 4
    steps = ("--keep-every-steps", "2", "--dry-run", "--json")
    assert len(command("prune", runs / "plan-a", "--keep-last", "1", *steps)["kept"]) == 4
    steps = ("--keep-every-steps", "100", "--dry-run", "--json")
    assert len(command("prune", runs / "plan-a", "--keep-last", "1", *steps)["kept"]) == 2


def test_says_what_it_does(command, runs):
    text = command("prune", runs / "plan-a", "--keep-last", "1", "--dry-run")
    assert "Would drop 2 checkpoints, " in text
    assert "; 2 stay." in text


def test_leaves_damaged_ones_alone(command, runs):
    models = runs / "plan-a/models"
    first = min(models.glob("g*.json"))
    first.write_text("{}")
    done = command("prune", runs / "plan-a", "--keep-last", "1", "--json")
    assert first.stem not in [item["name"] for item in done["dropped"]]
    assert first.exists()
    assert first.with_suffix(".pth.tar").exists()


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_on_other_storages(command, runs, memory_url, aws, kind):
    run = f"{memory_url if kind == 'memory' else aws.url}/plan-a"
    command("cp", runs / "plan-a", run)
    done = command("prune", run, "--keep-last", "1", "--json")
    assert len(done["dropped"]) == 2
    assert names(command, run) == done["kept"]
    assert command("verify", run, "--json")["bad"] == 0


def test_the_best_are_so_by_the_runs_own_metric(tmp_path, command):
    run = Checkpointer(Store.open(tmp_path / "run/models"), monitor="accuracy", mode="max", logger=logging.getLogger())
    for step, accuracy in enumerate([0.1, 0.9, 0.2, 0.3], 1):
        run.save(
            {"step": step},
            step=step,
            epoch=step,
            epoch_complete=True,
            position=0,
            world_size=1,
            metrics={"accuracy": accuracy, "val_loss": accuracy},
        )
    dropped = command("prune", tmp_path / "run", "--keep-best", "2", "--dry-run", "--json")["dropped"]
    assert [one["step"] for one in dropped] == [1, 3]
    dropped = command("prune", tmp_path / "run", "--keep-best", "1", "--monitor", "val_loss", "--dry-run", "--json")
    assert [one["step"] for one in dropped["dropped"]] == [3]  # 1 is the lowest, 2 is called best, 4 is the newest
