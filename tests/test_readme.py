"""Every command and every script of the README, run as a newcomer would: in a clone, in order."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line.strip()
]
IN_THE_TEXT = re.findall(r"`([^`\n]+ train\.py)`", README)
(TRAIN,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

INSTALL = "pip install ."
DEMO = "./scripts/demo"
PROVE = "minetorch prove train.py"
SUITE = {
    # These run everything there is, this test included: here, as far as their first step.
    "./scripts/test": ["./scripts/test", "--version"],
    "./scripts/test --all": ["./scripts/test", "-m", "slow", "--version"],
    "./scripts/check": ["./scripts/setup", "dev"],
}
LOOKING = [command for command in COMMANDS if command.startswith("minetorch ")]
TRAINING = [command for command in [*COMMANDS, *IN_THE_TEXT] if command.endswith("train.py") and command != PROVE]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of this checkout that shares its virtual environment."""
    if not (ROOT / "scripts").is_dir() or Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("needs a checkout with .venv: use scripts/test")
    subprocess.run([ROOT / "scripts/setup", "dev"], check=True)
    copy = tmp_path_factory.mktemp("a clone") / "minetorch"
    kept_out = shutil.ignore_patterns(".*_cache", ".venv*", ".git", "alchemistic_directory", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=kept_out)
    (copy / ".venv").symlink_to(ROOT / ".venv")
    return copy


def test_there_are_the_commands_that_the_readme_promises():
    assert COMMANDS[0] == INSTALL
    assert f"`{DEMO}`" in README
    assert {*COMMANDS, *IN_THE_TEXT} == {INSTALL, *TRAINING, *LOOKING, PROVE, *SUITE}
    assert {command.split()[0] for command in TRAINING} == {"python", "minetorch-launch", "torchrun", "srun"}


@pytest.mark.slow
def test_it_installs(run_command, clone, tools):
    offline = ["--dry-run", "--no-deps", "--no-index", "--no-build-isolation"]
    output = run_command(sys.executable, "-m", *INSTALL.split(), *offline, cwd=clone, env=tools)
    assert "Would install minetorch-" in output


@pytest.mark.slow
@pytest.mark.parametrize("command", SUITE)
def test_the_suites_commands_start(run_command, clone, tools, command):
    run_command(*SUITE[command], cwd=clone, env=tools)


@pytest.mark.slow
def test_the_demo_trains_and_then_resumes(run_command, clone, tools):
    first = run_command(DEMO, cwd=clone, env=tools)
    run = clone / "alchemistic_directory" / "digits"
    assert "training from scratch" in first
    for name in ("loss", "accuracy"):
        assert str(run / "graph" / f"{name}.png") in first
        assert (run / "graph" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    second = run_command(DEMO, cwd=clone, env=tools)
    assert f"Resumed from {run}" in second
    accuracy = re.findall(r"Epoch 15/15: .*accuracy ([0-9.]+)", second)
    assert float(accuracy[0]) > 0.95


@pytest.fixture
def folder(tmp_path):
    """A folder with the README's script in it."""
    (tmp_path / "train.py").write_text(TRAIN)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAINING)
def test_one_script_runs_in_every_way(run_command, folder, tools, command):
    fakes = os.pathsep.join([str(ROOT / "tests/fakes"), tools["PATH"]])
    if "node1" in command:
        node = command.replace("node1", f"127.0.0.1:{free_port()}")
        command = f"{node} & {node} && wait $!"  # two nodes on one machine
    output = run_command("bash", "-c", command, cwd=folder, env=tools | {"PATH": fakes})
    assert output.count("Epoch 5/5: train_loss ") == 1, output
    run = folder / "alchemistic_directory/first-try"
    assert {"log.txt", "graph", "models"} <= {path.name for path in run.iterdir()}
    assert (run / "models/epoch_3.pth.tar").exists()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.slow
def test_the_commands_show_the_run_that_was_trained(run_command, folder, tools):
    run_command(sys.executable, "train.py", cwd=folder, env=tools)
    for command in LOOKING:
        assert "first-try" in run_command(*command.split(), cwd=folder, env=tools)
    assert (folder / "report.html").exists()
