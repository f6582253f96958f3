"""What users import, and what the documents say of it."""

import inspect
import re
from pathlib import Path

import minetorch

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_everything_public_is_there_and_documented():
    for name in minetorch.__all__:
        member = getattr(minetorch, name)
        assert name.startswith("__") or isinstance(member, (dict, str)) or inspect.getdoc(member), name


def test_the_readme_has_a_row_for_every_parameter_and_hook_point():
    parameters = [
        name for name in inspect.signature(minetorch.Trainer).parameters if name not in ("trivial", "unknown")
    ]
    rows = set(re.findall(r"^\| `(\w+)`", README, re.MULTILINE))
    assert rows >= set(parameters)
    assert rows >= set(minetorch.HOOK_POINTS)


def test_the_docstring_of_the_trainer_has_every_parameter():
    documented = set(re.findall(r"^ {4}(\w+): ", inspect.getdoc(minetorch.Trainer.__init__), re.MULTILINE))
    assert documented >= set(inspect.signature(minetorch.Trainer).parameters)
