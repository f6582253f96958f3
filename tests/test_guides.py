"""The scripts in the guides, run as their readers would."""

import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def scripts(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_tutorials_script_trains(tmp_path, run_command, tools):
    (script,) = scripts("tutorial.md")
    (tmp_path / "train.py").write_text(script)
    output = run_command(sys.executable, "train.py", cwd=tmp_path, env=tools)
    assert "Epoch 3/3: train_loss" in output


@pytest.mark.parametrize("function", ["train_by_hand", "train_with_minetorch"])
def test_a_loop_before_and_after_it_is_moved(tmp_path, run_command, tools, function):
    (tmp_path / "train.py").write_text(
        "\n".join([*scripts("moving.md"), f'if __name__ == "__main__":\n    {function}()'])
    )
    launch = [sys.executable, "-m", "minetorch_launch", "--nproc", "2", "train.py"]
    run_command(*launch, cwd=tmp_path, env=tools | {"MINETORCH_DEVICE": "cpu"})
    kept = ["checkpoint.pt"] if function == "train_by_hand" else ["alchemistic_directory"]
    assert [path.name for path in tmp_path.iterdir() if path.name != "train.py"] == kept
