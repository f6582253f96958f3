import dataclasses
import json
import logging

import pytest
import torch

from minetorch.checkpoint import Checkpointer, Manifest, Store


def test_shows_a_run(command, runs):
    text = command("show", runs / "plan-a")
    for part in (str(runs / "plan-a"), "mine", "GENERATION", f"torch {torch.__version__}", "epoch_3"):
        assert part in text
    facts = command("show", runs / "plan-a", "--json")
    (writer,) = facts["writers"]
    assert (writer["generation"], writer["checkpoints"], writer["first_step"], writer["last_step"]) == (1, 4, 2, 6)
    assert writer["versions"]["torch"] == str(torch.__version__)
    assert writer["host"]
    assert len(facts["list"]) == 4


@pytest.mark.parametrize("name", ["best", "latest", "epoch_3", "3", "latest.pth.tar"])
def test_shows_what_is_inside(command, runs, name):
    text = command("show", runs / "plan-a", name)
    assert "step 6, end of epoch 3" in text
    assert "state_dict / weight" in text
    assert "best is   lowest val_loss" in text
    facts = command("show", runs / "plan-a", name, "--json")
    saved = torch.load(runs / "plan-a/models/latest.pth.tar", weights_only=True)
    assert set(facts["contents"]) == set(saved)
    assert facts["contents"]["state_dict"] == [
        {"path": ["state_dict", "weight"], "shape": [1, 3], "dtype": "float32", "size": 12},
        {"path": ["state_dict", "bias"], "shape": [1], "dtype": "float32", "size": 4},
    ]
    assert facts["contents"]["progress"] == []


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # aiohttp's, of what s3fs hands it
def test_reads_little_of_a_large_one(command, aws, tmp_path):
    """24 MB of weights on S3, of which less than 2 MB are fetched."""
    run = Checkpointer(Store.open(tmp_path / "run").child("models"), logger=logging.getLogger("tests"))
    run.save(
        {"state_dict": {"w": torch.zeros(2000, 3000)}},
        step=1,
        epoch=1,
        epoch_complete=True,
        position=0,
        world_size=1,
        metrics={},
    )
    command("cp", tmp_path / "run", f"{aws.url}/run")
    fetched = []
    read = Store.read_range

    def count(store, name, start, stop):
        fetched.append(stop - start)
        return read(store, name, start, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "read_range", count)
        facts = command("show", f"{aws.url}/run", "latest", "--json")
    assert facts["contents"]["state_dict"][0]["size"] == 24_000_000
    assert sum(fetched) > 0
    if not torch.__version__.startswith("2.9."):  # which reads the data of tensors on the meta device, too
        assert sum(fetched) < 2_000_000


def test_a_name_or_run_that_is_not_there_lists_those_that_are(command, runs):
    text = command("show", runs / "plan-a", "bst", expect=1)
    assert "there is no checkpoint 'bst'" in text
    assert "names best, latest, mine; epochs 3, 2, 1" in text
    text = command("show", runs / "plan-c", expect=1)
    assert f"in {runs}: There is no run 'plan-c'. Did you mean 'plan-a'?" in text
    assert "these below it: mnist/plan-b, plan-a" in command("show", runs, expect=1)
    text = command("show", runs / "plan-a", "a/b", expect=2)
    assert "'a/b' is not the name of a checkpoint" in text


def test_a_checkpoint_whose_manifest_is_of_the_future(command, runs):
    first = min((runs / "plan-a/models").glob("g*.json"))
    first.write_text(json.dumps({**json.loads(first.read_bytes()), "format": 99}))
    assert "format 99" in command("show", runs / "plan-a", first.stem, expect=1)
    assert "format 99" in command("show", runs / "plan-a")


def test_figures_that_json_does_not_know(command, runs):
    newest = max((runs / "plan-a/models").glob("g*.json"))
    manifest = Manifest.from_json(newest.read_bytes())
    manifest = dataclasses.replace(manifest, metrics={"val_loss": float("nan"), "gain": float("inf")})
    newest.write_bytes(manifest.to_json())
    facts = command("show", runs / "plan-a", "latest", "--json")
    assert facts["metrics"] == {"val_loss": "nan", "gain": "inf"}
