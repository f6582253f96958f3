"""Every command and every script of the README, run as a newcomer would: in a clone, in order."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line.strip()
]
SCRIPTS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TRAIN = next(script for script in SCRIPTS if "trainer.train()" in script)

SUITE = {
    # These run everything there is, this test included: here, as far as their first step.
    "./scripts/test": ["./scripts/test", "--version"],
    "./scripts/test --all": ["./scripts/test", "-m", "slow", "--version"],
    "./scripts/check": ["./scripts/setup", "dev"],
}
DEMO = "./scripts/demo"
TRAINING = [command for command in COMMANDS if command not in {*SUITE, DEMO}]


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
    assert COMMANDS[0] == DEMO
    assert set(COMMANDS) >= set(SUITE)
    assert {command.split()[0] for command in TRAINING} == {"python", "minetorch-launch", "torchrun", "srun"}


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


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAINING)
def test_one_script_runs_in_every_way(run_command, tmp_path, tools, command):
    (tmp_path / "train.py").write_text(TRAIN)
    fakes = os.pathsep.join([str(ROOT / "tests/fakes"), tools["PATH"]])
    output = run_command(*command.split(), cwd=tmp_path, env=tools | {"PATH": fakes})
    if "--dry-run" in command:
        assert "rank 1" in output
        assert not (tmp_path / "alchemistic_directory").exists()
        return
    assert output.count("Epoch 5/5: train_loss ") == 1, output
    run = tmp_path / "alchemistic_directory/first-try"
    assert {"log.txt", "graph", "models"} <= {path.name for path in run.iterdir()}
    assert (run / "models/epoch_3.pth.tar").exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_every_script_compiles(script):
    compile(script, "README.md", "exec")


@pytest.mark.slow
def test_the_readmes_hook_and_drawer_work(tmp_path, tools, run_command):
    """The shorter blocks of the README, used in the longer one."""
    hook = next(script for script in SCRIPTS if "draw_accuracy" in script)
    drawer = next(script for script in SCRIPTS if "PrintDrawer" in script)
    whole = TRAIN.replace(
        "    loss_func=loss_func,\n",
        "    loss_func=loss_func,\n    val_dataloader=DataLoader(data, batch_size=99),\n"
        "    hooks=hooks,\n    drawer=PrintDrawer(),\n"
        "    checkpoints=minetorch.Checkpoints(monitor='accuracy', mode='max'),\n",
    )
    (tmp_path / "train.py").write_text("\n".join([hook, drawer, whole]))
    output = run_command(sys.executable, "train.py", cwd=tmp_path, env=tools)
    assert "accuracy 5.0 {'accuracy': 0.9" in output
    assert "loss 5.0 {'train': 0." in output
    assert "epoch 5: accuracy 0.9" in output
