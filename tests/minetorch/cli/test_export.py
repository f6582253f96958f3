import importlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import minetorch


def test_weights_for_torch(command, runs, tmp_path):
    out = tmp_path / "best weights.pth"
    text = command("export", runs / "plan-a", "best", out)
    assert f"Wrote {out}: 2 weights of g0001-" in text
    assert "(epoch 3, step 6)" in text
    torch.nn.Linear(3, 1).load_state_dict(torch.load(out, weights_only=True))


def test_the_whole_state(command, runs, tmp_path):
    facts = command("export", runs / "plan-a", "mine", tmp_path / "all.pth", "--all", "--json")
    state = torch.load(tmp_path / "all.pth", weights_only=True)
    assert list(state) == facts["keys"]
    assert (state["epoch"], facts["epoch"], facts["step"]) == (2, 2, 4)
    assert facts["size"] == (tmp_path / "all.pth").stat().st_size


def test_safetensors(command, runs, tmp_path):
    command("export", runs / "plan-a", "best", tmp_path / "w.safetensors")
    torch.nn.Linear(3, 1).load_state_dict(load_file(tmp_path / "w.safetensors"))
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["epoch"], metadata["step"]) == ("pt", "3", "6")
    assert set(json.loads(metadata["metrics"])) == {"train_loss", "val_loss"}


def test_tensors_that_share_memory_are_each_written(command, runs, tmp_path):
    command("export", runs / "mnist/plan-b", "latest", tmp_path / "w.safetensors")
    written = load_file(tmp_path / "w.safetensors")
    saved = minetorch.load(runs / "mnist/plan-b", "latest")["state_dict"]
    assert written.keys() == saved.keys()
    assert {"encoder.weight", "decoder.weight", "head", "tail"} <= written.keys()
    assert all(torch.equal(written[name], value) for name, value in saved.items())


def test_replaces_nothing_unasked(command, runs, tmp_path):
    out = tmp_path / "w.pth"
    out.write_text("precious")
    assert "exists already: give --force" in command("export", runs / "plan-a", "best", out, expect=2)
    assert out.read_text() == "precious"
    command("export", runs / "plan-a", "best", out, "--force")
    assert set(torch.load(out, weights_only=True)) == {"weight", "bias"}


@pytest.mark.parametrize(
    ("name", "out", "said"),
    [("bst", "w.pth", "there is no checkpoint 'bst'"), ("best", "no/w.pth", "there is no folder no")],
)
def test_what_cannot_be_done(command, runs, tmp_path, monkeypatch, name, out, said):
    monkeypatch.chdir(tmp_path)
    assert said in command("export", runs / "plan-a", name, out, expect=1)
    assert [path.name for path in tmp_path.iterdir()] == ["my runs"]


def test_safetensors_is_not_installed(command, runs, tmp_path, monkeypatch):
    find = importlib.import_module

    def missing(name):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return find(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    text = command("export", runs / "plan-a", "best", tmp_path / "w.safetensors", expect=2)
    assert "pip install 'minetorch[safetensors]'" in text


def test_from_s3(command, runs, aws, tmp_path):
    command("cp", runs / "plan-a", f"{aws.url}/plan-a", "--only", "best")
    command("export", f"{aws.url}/plan-a", "best", tmp_path / "w.pth")
    assert set(torch.load(tmp_path / "w.pth", weights_only=True)) == {"weight", "bias"}
