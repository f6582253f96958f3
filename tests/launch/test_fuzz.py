"""Whatever stands on a worker's line or in its memory: an error of ours, or none."""

import json
import os
import socket
from contextlib import suppress

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from minetorch_launch.channel import Channel, parse_message
from minetorch_launch.console import Console
from minetorch_launch.console.collapse import Collapse
from minetorch_launch.console.lines import Lines
from minetorch_launch.guard import Guard

fuzzed = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))

HUGE = "9" * 5000
numbers = st.one_of(
    st.integers(-3, 300).map(str),
    st.floats().map(str),
    st.sampled_from(["", "auto", "gpu", "2:4", "1:", ":", "inf", "-inf", "nan", "1e400", "²", "٣", "0x10", HUGE]),
)
anything = st.text(st.characters(blacklist_characters="\0"), max_size=12)
values = st.one_of(
    numbers,
    anything,
    st.sampled_from(["cpu", "cuda", "spawn", "h:5", "[::1]:7", "usr1,12", "c10d", "0:1,1:2", "a=b,c"]),
)


def check(error):
    """A refusal fits on a screen; one with line breaks would have them from what was given."""
    assert len(str(error).splitlines()) == 1, str(error)
    assert len(str(error)) < 2000


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


messages = st.fixed_dictionaries(
    {"event": st.sampled_from(["failed", "result", "stacks", "x"]) | plain},
    optional=dict.fromkeys(["time", "code", "summary", "traceback", "uses_trainer", "pickle", "number"], plain),
).map(lambda message: json.dumps(message).encode())


@fuzzed
@given(st.binary(max_size=40) | plain.map(lambda value: json.dumps(value).encode()) | messages)
@example(b"[" * 100_000)
@example(b'{"event": ["failed"]}')
@example(b'{"event": "stacks", "number": Infinity}')
@example(b'{"event": "result", "pickle": "a"}')
@example(b'{"event": "failed", "time": NaN, "code": 1, "summary": "", "traceback": "", "uses_trainer": false}')
def test_a_workers_line_is_a_message_or_nothing(line):
    message = parse_message(line)
    if message is not None:
        kinds = {"failed": (float, int), "result": bytes, "stacks": int}[message["event"]]
        assert isinstance(message[{"failed": "time", "result": "pickle", "stacks": "number"}[message["event"]]], kinds)


def test_what_workers_say_is_understood():
    failed = {"event": "failed", "time": 1.5, "code": -2, "summary": "é", "traceback": "\n", "uses_trainer": True}
    assert parse_message(json.dumps(failed).encode()) == failed
    assert parse_message(b'{"event": "result", "pickle": "AAE="}') == {"event": "result", "pickle": b"\0\1"}


def test_strangers_at_the_channel_are_hung_up_on():
    """Also those that know the token, but do not bring what a worker brings."""
    out, err = os.pipe(), os.pipe()
    with Guard() as guard, Channel(Console(out[1], err[1]), guard) as channel:
        channel.begin_attempt(0)

        @settings(fuzzed, max_examples=40)
        @given(st.binary(max_size=40) | plain.map(lambda value: json.dumps(value).encode()), st.booleans())
        @example(b"[" * 100_000, False)
        @example(b'{"rank": Infinity}', True)
        def call(words, knows):
            if knows:
                words = json.dumps({"token": channel.token, "rank": words.decode(errors="replace")}).encode()
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
                stranger.settimeout(30)
                stranger.connect("\0" + channel.address)
                with suppress(OSError):
                    stranger.sendall(words + b"\n")
                    assert stranger.recv(1) == b""

        call()
        channel.settle()
        assert channel.heard() == {}
        assert channel._thread.is_alive()
    for fd in (*out, *err):
        os.close(fd)


pieces = st.lists(st.binary(max_size=40) | st.sampled_from([b"\n", b"\r", b"\r\n", b"a\rb", b"\n\n", b"\xff"]))


@fuzzed
@given(pieces)
def test_lines_are_the_same_however_they_are_cut(chunks):
    def fed(parts):
        lines = Lines()
        return b"".join([*map(lines.feed, parts), lines.finish()])

    whole = b"".join(chunks)
    assert fed(chunks) == fed([whole]) == fed([bytes([byte]) for byte in whole])


@fuzzed
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["out", "err"]), st.binary(max_size=8))), st.floats(0, 1))
def test_no_line_is_lost_where_ranks_are_shown_together(fed, pause):
    collapse, now, shown = Collapse(), 0.0, []
    said = {rank: [] for rank in range(4)}
    for rank, stream, text in fed:
        line = text.replace(b"\n", b"") + b"\n"
        said[rank].append((stream, line))
        shown += collapse.feed(rank, stream, line, now)
        now += pause
    shown += collapse.flush()
    heard = {rank: [] for rank in range(4)}
    for group in shown:
        for rank in group.ranks:
            heard[rank] += [(group.stream, line + b"\n") for line in group.text.split(b"\n")]
    assert heard == said
