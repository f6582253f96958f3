"""What users import, and what the documents say of it."""

import inspect
import re
from pathlib import Path

import pytest

import minetorch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/trainer.md").read_text(encoding="utf-8")


def test_everything_public_is_there_and_documented():
    for name in minetorch.__all__:
        member = getattr(minetorch, name)
        assert name.startswith("__") or isinstance(member, (dict, str)) or inspect.getdoc(member), name


def options_in(text, heading):
    """Names and defaults in the table of options that follows the heading of its first column, in order."""
    (table,) = re.findall(rf"^\| {heading} \| default \| .*\n((?:\|.*\n)*)", text, re.MULTILINE)
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.+?)`|required) \|", table, re.MULTILINE)
    return {name: eval(default, vars(minetorch)) if default else inspect.Parameter.empty for name, default in rows}


def options_of(kind):
    return {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}


def test_the_document_has_a_row_for_every_parameter_with_its_default():
    parameters = options_of(minetorch.Trainer)
    del parameters["unknown"]
    assert list(options_in(PAGE, "parameter").items()) == list(parameters.items())


@pytest.mark.parametrize(
    ("heading", "kind"),
    [("option", minetorch.Checkpoints), ("option of `DDP`", minetorch.DDP), ("option of `Exact`", minetorch.Exact)],
)
def test_the_document_has_a_row_for_every_option_with_its_default(heading, kind):
    assert list(options_in(PAGE, heading).items()) == list(options_of(kind).items())


def test_the_document_has_a_row_for_every_hook_point_with_what_it_gives():
    (table,) = re.findall(r"^\| hook point \| .*\n((?:\|.*\n)*)", PAGE, re.MULTILINE)
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ?(.*)\|$", table, re.MULTILINE)
    assert {name: tuple(re.findall(r"`(\w+)`", given)) for name, given in rows} == dict(minetorch.HOOK_POINTS)


def test_the_docstring_of_the_trainer_has_every_parameter():
    documented = set(re.findall(r"^ {4}(\w+): ", inspect.getdoc(minetorch.Trainer.__init__), re.MULTILINE))
    assert documented >= set(inspect.signature(minetorch.Trainer).parameters)
