import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minetorch_launch.output.lines import Lines


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"a\nb\n"], [b"a", b"b"]),
        ([b"a", b"b\nc"], [b"ab", b"c"]),
        ([b"\n\n"], [b"", b""]),
        ([b"dos\r\n"], [b"dos"]),
        ([b"\r 0%", b"\r 50%", b"\r100%\n"], [b"100%"]),
        ([b"\r 50%\r      \rmessage\n\r 60%"], [b"message", b" 60%"]),
        ([b"\r 50%", b"\r", b"    \r"], []),
        ([b"a\r\n\nb\rc\n"], [b"a", b"", b"c"]),
    ],
)
def test_lines_are_whole_and_in_their_final_state(chunks, lines):
    cut = Lines()
    assert b"".join([*(cut.feed(chunk) for chunk in chunks), cut.finish()]) == b"".join(line + b"\n" for line in lines)


def test_an_endless_line_does_not_fill_the_memory():
    cut = Lines()
    out = b"".join(cut.feed(b"x" * 1000) for _ in range(200))
    assert len(cut.pending()) <= 1 << 16
    assert out.count(b"x") + len(cut.pending()) == 200_000
    bar = Lines()
    assert b"".join(bar.feed(b"\r%d%%" % step + b"-" * 80) for step in range(5000)) == b""
    assert bar.finish().startswith(b"4999%")


@settings(deadline=None, database=None)
@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"\n", b"\r", b"\r\n", b"a\rb", b"\n\n", b"\xff"])))
def test_lines_are_the_same_however_they_are_cut(chunks):
    def fed(parts):
        lines = Lines()
        return b"".join([*map(lines.feed, parts), lines.finish()])

    whole = b"".join(chunks)
    assert fed(chunks) == fed([whole]) == fed([bytes([byte]) for byte in whole])
