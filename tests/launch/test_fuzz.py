"""Whatever stands on a command line, in SLURM's variables or on a worker's line: an error of ours, or none."""

import json
import math
import os
import socket
import string
from contextlib import suppress

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minetorch_launch.arguments import _parser, read
from minetorch_launch.channel import Channel, parse_message
from minetorch_launch.console import Console
from minetorch_launch.errors import UsageError
from minetorch_launch.guard import Guard
from minetorch_launch.hangs.watch import HEARTBEAT_BYTES, PHASES, Heartbeat, first_heartbeat
from minetorch_launch.joining import parse_endpoint
from minetorch_launch.plan import LaunchOptions, make_plan
from minetorch_launch.slurm.job import (
    BATCH_VARIABLE,
    BatchWord,
    SlurmJob,
    Times,
    expand_counts,
    expand_hosts,
    fill_in,
    make_deadline,
    parse_duration,
    srun_command,
)
from minetorch_launch.topology import Device, Node
from minetorch_launch.torchrun import _INSTEAD, _NEEDLESS, _SAME

fuzzed = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))

OWN = sorted(name for action in _parser()._actions for name in action.option_strings)
TORCHRUNS = sorted({*_SAME, *_NEEDLESS, *_INSTEAD})
NODES = [Node("here", 8), Node("here.example.org", 1, gpus=(Device(0, "GPU-a"), Device(1, "GPU-b")))]

HUGE = "9" * 5000
numbers = st.one_of(
    st.integers(-3, 300).map(str),
    st.floats().map(str),
    st.sampled_from(["", "auto", "gpu", "2:4", "1:", ":", "inf", "-inf", "nan", "1e400", "²", "٣", "0x10", HUGE]),
)
anything = st.text(st.characters(blacklist_characters="\0"), max_size=12)
values = st.one_of(numbers, anything, st.sampled_from(["cpu", "cuda", "spawn", "h:5", "[::1]:7", "usr1,12", "c10d"]))


def check(error):
    """A refusal fits on a screen; one with line breaks would have them from what was given."""
    assert len(str(error).splitlines()) == 1, str(error)
    assert len(str(error)) < 2000


words = st.one_of(
    st.sampled_from(OWN + TORCHRUNS + ["-m", "--", "--module", "-", "train.py"]),
    st.tuples(st.sampled_from(OWN + TORCHRUNS), values).map("=".join),
    values,
)


@fuzzed
@given(st.lists(words, max_size=8), st.sampled_from(NODES))
@example(["--grace", "inf", "x.py"], NODES[0])
@example(["--nproc", HUGE, "x.py"], NODES[0])
@example([f"--dry-run={HUGE}", "x.py"], NODES[0])
@example([f"--no\nsuch{HUGE}", "x.py"], NODES[0])
@example(["--notice-signals", HUGE, "x.py"], NODES[0])
@example(["--start-method", "spawn", "--nproc", "999999999999", "x.py"], NODES[0])
def test_a_command_line_is_understood_or_refused_in_one_line(line, node):
    try:
        request = read(line)
        if request.target is not None:
            plan = make_plan(request.target, request.options, node, {"OMP_NUM_THREADS": "²"})
            assert plan.text()
            assert math.isfinite(plan.grace)
    except UsageError as error:
        check(error)


@fuzzed
@given(st.sampled_from(sorted(_SAME)), st.booleans(), numbers)
def test_torchruns_name_of_an_option_is_the_same_as_ours(name, underscored, value):
    def outcome(*line):
        try:
            return read([*line, "train.py", name])
        except UsageError as error:
            return str(error)

    theirs = "--" + name[2:].replace("-", "_") if underscored else name
    assert outcome(theirs, value) == outcome(f"{theirs}={value}") == outcome(_SAME[name], value)


def compressed(numbers, width):
    """A node list's brackets for these numbers, each run of neighbours as a range."""
    runs = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]:0{width}}-{run[-1]:0{width}}" if len(run) > 1 else f"{run[0]:0{width}}" for run in runs)


names = st.text(string.ascii_letters + string.digits + "-.", min_size=1, max_size=6)


@fuzzed
@given(st.lists(st.tuples(names, st.lists(st.integers(0, 2000), max_size=20), st.integers(1, 5), names), min_size=1))
def test_node_lists_come_back_as_they_were(groups):
    text, hosts = [], []
    for prefix, numbers, width, suffix in groups:
        text.append(f"{prefix}[{compressed(numbers, width)}]{suffix}" if numbers else prefix)
        hosts += [f"{prefix}{number:0{width}}{suffix}" for number in sorted(set(numbers))] if numbers else [prefix]
    assert expand_hosts(",".join(text)) == tuple(hosts)


odd_lists = st.text(string.digits[:3] + "n[],-() x9²", max_size=30)


@fuzzed
@given(odd_lists)
@example("n[1-999999999999]")
@example("n[1-99999][1-99999][1-99999]")
@example("n[1-" + HUGE + "]")
@example(",".join(["n[1-60000]"] * 50))
def test_a_node_list_is_hosts_or_refused(text):
    with suppress(UsageError):
        hosts = expand_hosts(text)
        assert 0 < len(hosts) < 10**6
        assert all(hosts)


@fuzzed
@given(odd_lists)
@example("1(x999999999999)")
@example(f"{HUGE}(x2)")
def test_a_list_of_counts_is_numbers_or_refused(text):
    with suppress(UsageError):
        assert len(expand_counts(text)) < 10**6


@fuzzed
@given(st.text(string.digits + ":- ²", max_size=20))
@example(HUGE)
@example(f"{'9' * 400}-0")
def test_a_duration_is_seconds_or_unknown(text):
    seconds = parse_duration(text)
    assert seconds is None or 0 <= seconds < math.inf


VARIABLES = [
    "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_STEP_ID", "SLURMD_NODENAME",
    "SLURM_STEP_NODELIST", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_RESTART_COUNT",
    "SLURM_LOCALID", "SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_TASK", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE",
    "SLURM_JOB_CPUS_PER_NODE", "SLURM_NTASKS_PER_NODE", "SLURM_NTASKS", "SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME",
    BATCH_VARIABLE,
]  # fmt: skip
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
batch_words = st.fixed_dictionaries(
    {}, optional={"workers": plain, "address": plain, "times": plain | st.fixed_dictionaries({"end": plain})}
).map(json.dumps)
variables = st.one_of(numbers, odd_lists, anything, batch_words, st.sampled_from(["n[1-2]", "n1", "2(x2)", "n1,n2"]))


@fuzzed
@given(
    st.fixed_dictionaries(
        {"SLURM_JOB_ID": st.just("7") | variables, "SLURM_JOB_NODELIST": st.just("n[1-2]") | variables},
        optional=dict.fromkeys(VARIABLES[1:], variables),
    ),
    st.sampled_from([None, "7.batch", "7.0", "7.interactive", "7.extern"]) | anything,
    st.floats(0, 1e6) | st.none(),
)
@example({"SLURM_JOB_ID": HUGE}, None, None)
@example({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", "SLURM_STEP_ID": HUGE}, None, None)
@example({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", BATCH_VARIABLE: "[" * 100_000}, "7.0", None)
@example({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", BATCH_VARIABLE: '{"workers": "2", "times": {}}'}, "7.0", None)
@example(
    {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", "SLURM_JOB_START_TIME": "9", "SLURM_JOB_END_TIME": "5"}, None, 1
)
def test_slurms_variables_make_a_job_or_are_refused(environ, own_step, asked):
    try:
        job = SlurmJob.from_env(environ, own_step)
        if job is None:
            assert not environ["SLURM_JOB_ID"]
            return
        assert 0 <= job.node < len(job.hosts)
        assert 15000 <= job.port < 30000
        deadline = make_deadline(job.times, asked, now=1e9)
        assert deadline is None or deadline.notice_at <= deadline.at
        filled = fill_in(LaunchOptions(), job, has_gpus=False, find_address=lambda host: host)
        assert make_plan_of(filled).text()
        assert all(isinstance(word, str) for word in srun_command(job, LaunchOptions(), ["x"], name="n"))
    except UsageError as error:
        check(error)


def make_plan_of(options):
    return make_plan(read(["train.py"]).target, options, NODES[0], {})


@fuzzed
@given(plain.map(json.dumps) | batch_words | anything)
@example("[" * 100_000)
def test_the_batch_steps_word_is_one_or_refused(text):
    with suppress(UsageError):
        word = BatchWord.from_text(text)
        assert BatchWord.from_text(word.text()) == word
        assert word.workers >= 1
        assert isinstance(word.times, Times)


@fuzzed
@given(st.text("ab.:[]12345 é\n", max_size=12) | anything)
@example(f"h:{HUGE}")
def test_a_place_to_meet_is_one_or_refused(text):
    with suppress(UsageError):
        endpoint = parse_endpoint(text)
        assert endpoint.host
        assert 0 < endpoint.port < 65536
        assert parse_endpoint(str(endpoint)) == endpoint


@fuzzed
@given(st.binary(max_size=200), st.integers(0, 2**31))
@example(b"", 1)
def test_whatever_is_in_a_heartbeats_memory(data, pid):
    assert Heartbeat.from_bytes(data, pid) is None
    # From a worker's own start on: every field but the first two may be anything.
    beat = Heartbeat.from_bytes(first_heartbeat(pid)[:16] + data.ljust(HEARTBEAT_BYTES, b"\xff"), pid)
    assert beat is None or beat.phase in PHASES


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
