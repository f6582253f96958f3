"""`minetorch compare` on real runs, from different storages."""

import dataclasses
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from minetorch.checkpoint.run import Run
from minetorch.views.comparison import Comparison, rows
from minetorch.views.record import Record


def test_runs_of_two_storages_stand_on_one_graph(command, plans, aws, tmp_path):
    command("cp", plans / "plan-b", f"{aws.url}/runs/plan-b")
    runs = plans / "plan-a", f"{aws.url}/runs/plan-b"
    text = command("compare", *runs, "-o", tmp_path / "both.png")
    assert "settings.optimizer.lr  0.05     0.2" in text
    assert "settings.seed" not in text
    assert "plan-b: 8 points of loss over 0 resumptions" in text
    assert "settings.seed" in command("compare", *runs, "--all")
    with Image.open(tmp_path / "both.png") as picture:
        assert picture.size[0] == 1200

    facts = command("compare", *runs, "--graph", "loss per step", "--json")
    assert facts["differences"]["settings.max_epochs"] == [3, 4]
    assert facts["same"]["world_size"] == 1
    first, second = facts["runs"]
    assert (first["label"], second["label"], second["url"]) == ("plan-a", "plan-b", runs[1])
    assert [x for x, _ in second["curves"]["loss per step"]] == list(range(1, 9))
    assert first["x"] == "step"


OLD_SETTINGS = {
    **dict.fromkeys(("persist_steps", "persist_minutes", "keep_last", "keep_best", "keep_every", "keep_every_steps")),
    "persist_policy": "wait",
    "monitor": "val_loss",
    "mode": "min",
    "optimizer_options": "checkpoint",
    "elastic": False,
    "virtual_shards": 8,
    "find_unused_parameters": False,
}
"""As manifests had them before there were `Checkpoints` and strategies, of a run with the defaults."""


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({}, {}),
        (
            {"keep_last": 3, "persist_steps": 7},
            {"checkpoints.keep_last": [None, 3], "checkpoints.every_steps": [None, 7]},
        ),
        (
            {"elastic": "exact"},
            {
                "strategy": ["ddp", "exact"],
                "strategy.virtual_shards": [None, 8],
                "strategy.find_unused_parameters": [False, None],
            },
        ),
    ],
)
def test_the_settings_of_an_older_version_are_compared_under_their_present_names(command, plans, changes, differences):
    old = shutil.copytree(plans / "plan-a", plans / "old", symlinks=True)
    manifest = Run.open(old).catalogue.manifests[-1]
    others = {name: v for name, v in manifest.settings.items() if not name.startswith(("checkpoints.", "strategy"))}
    written = dataclasses.replace(manifest, settings=others | OLD_SETTINGS | changes)
    (old / "models" / manifest.key.manifest).write_bytes(written.to_json())
    found = command("compare", plans / "plan-a", old, "--json")["differences"]
    assert found == {f"settings.{name}": values for name, values in differences.items()}


def test_every_run_is_in_the_picture(plans):
    records = [Record.open(plans / name, now=0.0) for name in ("plan-a", "plan-b")]
    from minetorch.views.comparison import draw

    graphs = Comparison.of(records).graphs("loss")
    whole = np.asarray(Image.open(io.BytesIO(draw("loss", graphs))).convert("RGB"))
    colours = {tuple(pixel) for pixel in whole.reshape(-1, 3)}
    # The four first colours of the drawers' palette: train and val of each.
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73), (0xCC, 0x79, 0xA7)} <= colours


@pytest.mark.parametrize(
    ("words", "expect", "message"),
    [
        (["{plans}/plan-a"], 2, "give two runs or more"),
        (["{plans}/plan-a", "{plans}/plan-c"], 1, "Did you mean 'plan-"),
        (["{plans}/plan-a", "{plans}/plan-b", "--graph", "lss"], 2, "There is no graph 'lss'"),
        (["{plans}/plan-a", "{plans}/plan-b", "-o", "x.pdf"], 2, "ends with .png"),
        (["{plans}/plan-a", "{plans}/plan-b", "-o", "/nowhere/x.png"], 2, "cannot write it"),
    ],
)
def test_a_wrong_command_is_one_clear_error(command, plans, words, expect, message):
    assert message in command("compare", *(word.format(plans=plans) for word in words), expect=expect)


def test_what_is_the_same_is_so_in_type_too():
    table = rows([{"a": 1, "b": float("nan"), "x.p": 1}, {"a": True, "b": float("nan"), "x.q": 2, "c": 3}])
    assert [row.name for row in table] == ["a", "b", "c", "x.p", "x.q"]
    assert [row.name for row in table if row.differs] == ["a", "c", "x.p", "x.q"]
