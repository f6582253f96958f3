"""A notebook's function on its way to the workers, without a notebook."""

import linecache
import pickle
import traceback

import pytest

from minetorch.notebook.calling import Call

SOURCE = """
class Layer:
    def forward(self):
        raise ValueError("no good")

def outer(layer=Layer()):
    return [one.forward() for one in (layer,)]

def fn():
    return outer()
"""


@pytest.fixture
def cell(monkeypatch):
    """The names of a cell, and what `linecache` keeps of it; in this process it is forgotten, as in a worker."""
    monkeypatch.setenv("RANK", "0")
    name = "/tmp/ipykernel_1/2.py"
    names = {"__name__": "__main__"}
    exec(compile(SOURCE, name, "exec"), names)
    yield names, {name: (len(SOURCE), None, SOURCE.splitlines(keepends=True), name)}
    linecache.cache.pop(name, None)


def test_a_traceback_shows_the_lines_of_the_cell(cell):
    names, sources = cell
    call = Call(names["fn"], (), sources, all_ranks=False)
    with pytest.raises(ValueError, match="no good") as raised:
        call()
    text = "".join(traceback.format_exception(raised.value))
    for line in (
        'line 4, in forward\n    raise ValueError("no good")',
        "return [one.forward() for one in (layer,)]",
        "return outer()",
    ):
        assert line in text
    assert text.count("/tmp/ipykernel_1/2.py") >= 3


def test_a_function_that_comes_back_knows_its_cell(cell):
    names, sources = cell
    outer = names["outer"]
    back = pickle.loads(Call(lambda: outer, (), sources, all_ranks=False)())
    assert back.__code__.co_filename == "/tmp/ipykernel_1/2.py"
