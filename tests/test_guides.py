"""The scripts in the guides, run as their readers would, and the names and commands in all documents."""

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import minetorch
from minetorch.context import TrainerState
from minetorch_launch import arguments

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
ON_A_CPU = {"MINETORCH_DEVICE": "cpu"}


def scripts(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def launches():
    """Each command of the launcher that stands in a block of a document, without comments."""
    for page in PAGES:
        for block in re.findall(r"```(?:bash|text)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.search(r"(?:^|[ $])minetorch-launch (?!doctor)(.*)", line)
                if found:
                    yield pytest.param(shlex.split(found[1], comments=True), id=f"{page.name}: {found[1]}")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(port, seconds=60):
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        assert time.monotonic() < end, "the server did not come up"
        time.sleep(0.05)


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A folder of its own and no surrounding launcher or job, for what runs in this process."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MINETORCH_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_the_tutorials_script_trains(tmp_path, run_command, tools):
    (script,) = scripts("tutorial.md")
    (tmp_path / "train.py").write_text(script)
    output = run_command(sys.executable, "train.py", cwd=tmp_path, env=tools)
    assert "Epoch 3/3: train_loss" in output


@pytest.mark.slow
def test_the_tutorials_run_in_a_bucket_goes_on_from_an_empty_disk(tmp_path, run_command, tools):
    blocks = re.findall(r"```bash\n(.*?)```", (DOCS / "tutorial.md").read_text(encoding="utf-8"), re.DOTALL)
    (train,) = [line for block in blocks for line in block.splitlines() if "s3://bucket" in line]
    (server,) = [block.splitlines() for block in blocks if "moto_server" in block]
    pip, start, variables, make_bucket = server
    assert pip.startswith("pip install")
    assert start.endswith(" &")
    port = free_port()
    with subprocess.Popen(
        shlex.split(start.removesuffix(" &").replace("5555", str(port))),
        env=tools,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as moto:
        try:
            wait_for(port)
            prepared = variables.replace("5555", str(port))
            run_command("bash", "-c", f"{prepared}; {make_bucket}", cwd=tmp_path, env=tools)
            said = []
            for machine, epochs in [("one", 1), ("another", 2)]:
                (tmp_path / machine / "examples").mkdir(parents=True)
                shutil.copy(ROOT / "examples/digits.py", tmp_path / machine / "examples")
                command = f"{prepared}; {train} --epochs {epochs}"
                said.append(run_command("bash", "-c", command, cwd=tmp_path / machine, env=tools | ON_A_CPU))
        finally:
            moto.kill()
    assert "training from scratch" in said[0]
    assert "Resumed from s3://bucket/runs/digits/models/" in said[1]


@pytest.mark.slow
@pytest.mark.parametrize("function", ["train_by_hand", "train_with_minetorch"])
def test_a_loop_before_and_after_it_is_moved(tmp_path, run_command, tools, function):
    (tmp_path / "train.py").write_text(
        "\n".join([*scripts("moving.md"), f'if __name__ == "__main__":\n    {function}()'])
    )
    launch = [sys.executable, "-m", "minetorch_launch", "--nproc", "2", "train.py"]
    run_command(*launch, cwd=tmp_path, env=tools | ON_A_CPU)
    kept = ["checkpoint.pt"] if function == "train_by_hand" else ["alchemistic_directory"]
    assert [path.name for path in tmp_path.iterdir() if path.name != "train.py"] == kept


@pytest.mark.slow
def test_what_the_trainer_tells_is_the_same_on_two_workers(tmp_path, run_command, tools):
    script, *_ = scripts("trainer.md")
    (tmp_path / "look.py").write_text(script)
    told = []
    for launcher in ([], ["-m", "minetorch_launch", "--nproc", "2"]):
        output = run_command(sys.executable, *launcher, "look.py", cwd=tmp_path, env=tools | ON_A_CPU)
        told.append(re.findall(r"epoch (\d): (\d+) iterations, (\d+) steps, training (\S+), validation (\S+)", output))
        shutil.rmtree(tmp_path / "alchemistic_directory")
    assert [line[:3] for line in told[0]] == [("1", "10", "5"), ("2", "10", "10"), ("3", "10", "15")]
    for one, two in zip(*told, strict=True):
        assert [float(figure) for figure in one] == pytest.approx([float(figure) for figure in two], abs=1e-4)


@pytest.mark.slow
def test_a_hook_draws_logs_and_chooses_the_best(tmp_path, run_command, tools):
    look, hook = scripts("trainer.md")
    for old, new in (
        ("nn.Linear(32, 1)", "nn.Linear(32, 3)"),
        ("inputs.sum(dim=1, keepdim=True)", "inputs[:, :3].argmax(dim=1)"),
        ("mse_loss", "cross_entropy"),
        ('hooks={"after_epoch_end": tell}', "hooks=hooks, checkpoints=Checkpoints(monitor='accuracy', mode='max')"),
    ):
        assert old in look
        look = look.replace(old, new)
    (tmp_path / "look.py").write_text(f"from minetorch import Checkpoints\n{hook}\n{look}")
    launch = [sys.executable, "-m", "minetorch_launch", "--nproc", "2", "look.py"]
    output = run_command(*launch, cwd=tmp_path, env=tools | ON_A_CPU)
    (drawn,) = re.findall(r"epoch 3: accuracy (\S+)", output)
    (logged,) = re.findall(r"Epoch 3/3: .* accuracy (\S+)", output)
    assert float(drawn) == pytest.approx(float(logged), abs=1e-3)
    assert "Best: accuracy 0." in output
    assert (tmp_path / "alchemistic_directory/look/graph/accuracy.png").exists()


@pytest.mark.slow
def test_a_script_without_a_trainer_stops_on_a_notice(tmp_path, run_command, tools):
    (script,) = scripts("launcher.md")
    (tmp_path / "train.py").write_text(f"{script}\nimport os\n\nos.kill(os.getpid(), signal.SIGUSR2)\n")
    run_command(sys.executable, "train.py", cwd=tmp_path, env=tools, expect=75)


def test_a_generator_of_the_datasets_own_is_exact_with_any_number_of_workers(alone):
    names = {"__name__": "snippet"}
    exec(compile(scripts("resuming.md")[0], "resuming.md", "exec"), names)
    seen = {}

    def note(trainer, data):
        seen.setdefault(trainer.code, []).append(data.clone())

    for workers in (0, 2):
        model = nn.Linear(3, 1).double()
        minetorch.Trainer(
            "runs",
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            DataLoader(names["Noisy"](torch.zeros(12, 3).numpy()), batch_size=4, num_workers=workers),
            lambda trainer, data: trainer.model(data).mean(),
            code=str(workers),
            hooks={"after_train_iteration_end": note},
            drawer=None,
            max_epochs=2,
        ).train()
    assert len(seen["0"]) == 6
    assert torch.equal(torch.stack(seen["0"]), torch.stack(seen["2"]))
    assert not torch.equal(seen["0"][0], seen["0"][3])


def test_the_ledger_is_read_as_documented(alone, capsys):
    model = nn.Linear(1, 1)
    minetorch.Trainer(
        "alchemistic_directory",
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        DataLoader(TensorDataset(torch.ones(1437, 1)), batch_size=500, shuffle=True),
        lambda trainer, data: trainer.model(data[0]).mean(),
        code="digits",
        drawer=None,
        ledger=True,
        max_epochs=4,
    ).train()
    (script,) = scripts("prove.md")
    names = {}
    exec(compile(script, "prove.md", "exec"), names)
    said = re.search(r"print\(book.check.*# (.*)", script)[1]
    assert capsys.readouterr().out.splitlines()[-1] == said
    assert sorted(names["first"]) == list(range(1437))


@pytest.mark.parametrize("command", list(launches()))
def test_a_command_of_the_launcher_is_one(command):
    request = arguments.read(command, {})
    assert request.target is not None


def test_every_batch_script_is_one(run_command):
    found = [
        block
        for page in PAGES
        for block in re.findall(r"```text\n(#!/bin/bash\n.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ]
    assert len(found) >= 5
    for block in found:
        run_command("bash", "-n", "-c", block)
        assert all(line.startswith("#SBATCH --") for line in block.splitlines()[1:] if line.startswith("#"))


def test_every_name_is_there():
    trainer = {*dir(minetorch.Trainer), *TrainerState.__annotations__}
    for page in PAGES:
        text = re.sub(r"\]\([^)]*\)|```yaml\n.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for name in {*re.findall(r"(?<![\w.])trainer\.([a-z_]\w*)", text)} - {"py", "md", "fit"}:  # files; Lightning's
            assert name in trainer, f"{page.name}: trainer.{name}"
        for name in {*re.findall(r"\bminetorch\.([A-Z]\w+)", text)}:
            assert hasattr(minetorch, name), f"{page.name}: minetorch.{name}"
        for name in {*re.findall(r"`((?:tests|scripts|docs|examples|minetorch|launch)/[\w./-]+)`", text)}:
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_every_page_is_in_the_site_and_every_link_of_the_readme_leads_to_a_file():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page for page in DOCS.rglob("*.md") if os.fspath(page.relative_to(DOCS)) not in site] == []
    for link in re.findall(r"(?:\]\(|src=\")(?!https?:|#)([^)#\"]+)", PAGES[0].read_text(encoding="utf-8")):
        assert (ROOT / link).exists(), link
