"""Whatever a worker writes into its socket: a message, or nothing."""

import json

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minetorch_launch.workers.worker import parse_message

fuzzed = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


messages = st.fixed_dictionaries(
    {"event": st.sampled_from(["failed", "hello", "stacks", "x"]) | plain},
    optional=dict.fromkeys(["time", "code", "summary", "traceback", "uses_trainer", "main_thread", "number"], plain),
).map(lambda message: json.dumps(message).encode())


@fuzzed
@given(st.binary(max_size=40) | plain.map(lambda value: json.dumps(value).encode()) | messages)
@example(b"[" * 100_000)
@example(b'{"event": ["failed"]}')
@example(b'{"event": "stacks", "number": Infinity}')
@example(b'{"event": "failed", "time": NaN, "code": 1, "summary": "", "traceback": "", "uses_trainer": false}')
def test_a_workers_line_is_a_message_or_nothing(line):
    message = parse_message(line)
    if message is not None:
        field, kind = {"failed": ("time", (float, int)), "hello": ("stacks_fd", int), "stacks": ("number", int)}[
            message["event"]
        ]
        assert isinstance(message[field], kind)


def test_a_message_is_understood():
    failed = {
        "event": "failed",
        "time": 1.5,
        "code": -2,
        "summary": "é",
        "traceback": "\n",
        "error": "",
        "place": "",
        "secondary": False,
        "repeats_peer_error": False,
        "uses_trainer": True,
    }
    assert parse_message(json.dumps(failed).encode()) == failed
