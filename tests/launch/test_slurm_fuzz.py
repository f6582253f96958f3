"""Whatever stands in SLURM's variables: a job, or an error of one line."""

import math
import string
from contextlib import suppress

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minetorch_launch.devices import HostInfo
from minetorch_launch.errors import UsageError
from minetorch_launch.options import LaunchOptions
from minetorch_launch.plan import make_plan
from minetorch_launch.slurm.environment import BATCH_VARIABLE, SlurmJob, expand_counts, expand_hosts, parse_duration
from minetorch_launch.slurm.options import fill_in, make_deadline
from minetorch_launch.slurm.srun import srun_command
from minetorch_launch.target import Script

fuzzed = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))

HUGE = "9" * 5000
numbers = st.one_of(
    st.integers(-3, 300).map(str),
    st.floats().map(str),
    st.sampled_from(["", "auto", "gpu", "2:4", "1:", ":", "inf", "-inf", "nan", "1e400", "²", "٣", "0x10", HUGE]),
)
anything = st.text(st.characters(blacklist_characters="\0"), max_size=12)


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
    "SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_TASK", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE",
    "SLURM_JOB_CPUS_PER_NODE", "SLURM_NTASKS_PER_NODE", "SLURM_NTASKS", "SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME",
    BATCH_VARIABLE,
]  # fmt: skip
handoffs = st.lists(numbers | anything | st.sampled_from(["1", "", "h"]), min_size=3, max_size=5).map(",".join)
variables = st.one_of(numbers, odd_lists, anything, handoffs, st.sampled_from(["n[1-2]", "n1", "2(x2)", "n1,n2"]))


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
@example({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", BATCH_VARIABLE: f"1,h,{HUGE},"}, "7.0", None)
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
        assert deadline is None or deadline.warning_at <= deadline.at
        filled = fill_in(LaunchOptions(), job, has_gpus=False, find_address=lambda host: host)
        assert make_plan(Script("train.py"), filled, HostInfo("here", 8), {}).text()
        assert all(isinstance(word, str) for word in srun_command(job, LaunchOptions(), ["x"]))
    except UsageError as error:
        check(error)


def check(error):
    """A refusal is one line that fits on a screen."""
    assert len(str(error).splitlines()) == 1, str(error)
    assert len(str(error)) < 2000
