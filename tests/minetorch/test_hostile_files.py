"""Nothing in a checkpoint is ever run, wherever code stands in it; and no file of a run leads out of it."""

import dataclasses
import os
import re

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from werkzeug.test import Client

import minetorch
from minetorch import CheckpointMismatchError, ledger
from minetorch.checkpoint import Store
from minetorch.checkpoint.digest import digest_of
from minetorch.checkpoint.run import Run
from minetorch.cli import main
from minetorch.plugins import EMA
from minetorch.views.server import Application, Watched


class Code:
    """Makes a folder as soon as it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def in_first_curve(state, code):
    graph = next(iter(state["drawer"]["graphs"].values()))
    graph[next(iter(graph))] = code


PLACES = {
    "a weight": lambda state, code: state["state_dict"].update(weight=code),
    "a key": lambda state, code: state.update({code: 1}),
    "the optimizer": lambda state, code: state["optimizer"]["param_groups"][0].update(lr=code),
    "a statable's state": lambda state, code: state["statable"].update(meter=code),
    "a plugin's state": lambda state, code: state["plugins"]["EMA"].update(average=code),
    "a curve": in_first_curve,
    "the history": lambda state, code: state["history"].append(code),
    "the logs' places": lambda state, code: state.update(logs=code),
    "the generators": lambda state, code: state.update(random=[code]),
    "the progress": lambda state, code: state["progress"].update(step=code),
}


def spoil(folder, state):
    """Put a state in the place of the newest checkpoint's, with a manifest that vouches for it."""
    run = Run.open(folder)
    newest = run.catalogue.manifests[-1]
    path = folder / "models" / newest.payload
    torch.save(state, path)
    data = path.read_bytes()
    forged = dataclasses.replace(newest, size=len(data), digest=digest_of(data))
    (folder / "models" / newest.key.manifest).write_bytes(forged.to_json())
    return path


@pytest.fixture
def plan(trained, tmp_path):
    """A run of one epoch, with curves and a plugin's state."""
    trained(code="plan", plugins=[EMA(0.5)], max_epochs=1)
    return tmp_path / "runs/plan"


READERS = {
    "Trainer": lambda plan, path, do, make: make(code="plan", plugins=[EMA(0.5)]).train(),
    "Trainer, by path": lambda plan, path, do, make: make(code="other", resume=str(path)).train(),
    "Trainer, without a manifest": lambda plan, path, do, make: make(
        code="other", resume=str(path.rename(plan / "sent.pth.tar"))
    ).train(),
    "load": lambda plan, path, do, make: minetorch.load(plan),
    "load elsewhere": lambda plan, path, do, make: minetorch.load(plan, map_location="meta"),
    "show": lambda plan, path, do, make: do("show", plan, "latest", expect=1),
    "verify": lambda plan, path, do, make: do("verify", plan, expect=1),
    "export": lambda plan, path, do, make: do("export", plan, "latest", plan / "out.pth", expect=1),
    "export all": lambda plan, path, do, make: do("export", plan, "latest", plan / "out.pth", "--all", expect=1),
    "ls": lambda plan, path, do, make: do("ls", plan),
    "cp": lambda plan, path, do, make: do("cp", plan, plan.parent.parent / "copy"),
    "prune": lambda plan, path, do, make: do("prune", plan, "--keep-last", 1),
    "compare": lambda plan, path, do, make: do("compare", plan, plan),
    "report": lambda plan, path, do, make: do("report", plan, "--out", plan / "report.html"),
    "watch": lambda plan, path, do, make: Client(Application(Watched(Store.open(plan.parent), 2))).get("/run/plan"),
}
REFUSE = {reader for reader in READERS if reader.startswith(("Trainer", "load"))}


@pytest.mark.parametrize("place", PLACES)
def test_code_is_never_run(plan, make_trainer, command, tmp_path, monkeypatch, place):
    # What torch takes for a leave to run code; it must not count.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    ran = tmp_path / "ran"
    state = minetorch.load(plan)
    PLACES[place](state, Code(ran))
    path = spoil(plan, state)
    for reader, read in READERS.items():
        if reader in REFUSE:
            with pytest.raises(CheckpointMismatchError, match="contains code"):
                read(plan, path, command, make_trainer)
            if not path.exists():
                (plan / "sent.pth.tar").rename(path)
        else:
            read(plan, path, command, make_trainer)
        assert not ran.exists(), reader
    torch.load(path, weights_only=False)  # it would have
    assert ran.exists()


def test_a_file_that_was_exported_holds_no_code(plan, command, tmp_path):
    out = tmp_path / "weights.pth"
    command("export", plan, "latest", out, "--all")
    assert set(torch.load(out, weights_only=True)) == set(minetorch.load(plan))


@pytest.mark.parametrize("file", ["log.txt", f"{ledger.FOLDER}/{ledger.file_name(2, 0)}"])
def test_a_run_that_was_sent_writes_to_no_file_outside(plan, make_trainer, tmp_path, capfd, file):
    """Its links would have it append to whatever its user may write to."""
    precious = tmp_path / "precious"
    precious.write_text("mine\n")
    (plan / file).unlink(missing_ok=True)
    (plan / file).parent.mkdir(exist_ok=True)
    (plan / file).symlink_to(precious)
    make_trainer(code="plan", plugins=[EMA(0.5)], ledger=True, resume=file != "log.txt").train()
    assert precious.read_text() == "mine\n"
    assert re.search("(could not|cannot) be written", "".join(capfd.readouterr()))


def test_a_link_in_the_place_of_a_picture_is_replaced(plan, make_trainer, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine\n")
    (plan / "graph").mkdir()
    (plan / "graph/loss.png").symlink_to(precious)
    (plan / "models/latest.pth.tar").unlink()
    (plan / "models/latest.pth.tar").symlink_to(precious)
    make_trainer(code="plan", plugins=[EMA(0.5)], drawer="matplotlib").train()
    assert precious.read_text() == "mine\n"
    assert not (plan / "graph/loss.png").is_symlink()


def test_a_copy_takes_no_file_from_above_the_run_nor_puts_one_there(plan, command, tmp_path, capsys):
    """Object stores take any key; and links lead anywhere."""
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    (plan / "notes.txt").symlink_to(secret)
    target = tmp_path / "copies/plan"
    command("cp", plan, target)
    assert not (target / "notes.txt").exists()
    try:
        for path in (path for path in plan.rglob("*") if path.is_file() and not path.is_symlink()):
            fs = MemoryFileSystem()
            fs.pipe_file(f"/sent/plan/{path.relative_to(plan)}", path.read_bytes())
        fs.pipe_file("/sent/plan/x/../../../up.txt", b"up")
        assert main(["cp", "memory://sent/plan", str(tmp_path / "more/plan")]) == 2
        assert "'..' in it" in capsys.readouterr().err
        assert not list(tmp_path.rglob("up.txt"))
    finally:
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]
