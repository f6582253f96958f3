import math

import pytest

from minetorch.views.output import age, bytes_text, metrics_text, plural, table, write_json


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2, "1.0 MiB"),
        (5 * 1024**3, "5.0 GiB"),
        (1024**6, "1024.0 PiB"),
    ],
)
def test_sizes(size, text):
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (86_400 * 2, "2 d"), (-5, "0 s")],
)
def test_ages(seconds, text):
    assert age(1e9, 1e9 + seconds) == text
    assert age(None, 1e9) == "?"


def test_tables():
    text = table(["NAME", "STEP", "AT"], [["a", 5, "x"], ["bcdef", 10, ""]])
    assert text == "NAME   STEP  AT\na         5  x\nbcdef    10"
    assert table(["NAME", "STEP"], []) == "NAME  STEP"


def test_words():
    assert (plural(1, "run"), plural(0, "run")) == ("1 run", "0 runs")
    assert metrics_text({"a": 0.123456, "b": math.nan}) == "a 0.12346, b nan"


def test_strict_json(capsys):
    write_json({"ä": [math.nan, -math.inf, 1.5], "b": (1, None)})
    printed = capsys.readouterr().out.split()
    assert "".join(printed) == '{"ä":["nan","-inf",1.5],"b":[1,null]}'
