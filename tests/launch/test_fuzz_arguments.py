"""Whatever stands on a command line, in PET_* variables or in ``/sys``: a plan, or an error of one line."""

import math
from contextlib import suppress

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minetorch_launch.arguments import OPTIONS, read
from minetorch_launch.devices import Gpu, HostInfo
from minetorch_launch.errors import UsageError
from minetorch_launch.numa import MODES, Topology, bind_workers
from minetorch_launch.plan import make_plan
from minetorch_launch.torchrun import FLAGS, SAME, VALUED
from minetorch_launch.validators import parse_endpoint

fuzzed = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))

OWN = sorted(option.name for options in OPTIONS.values() for option in options)
TORCHRUNS = [*FLAGS, *VALUED, "-m", "-r", "-t", "--nproc_per", "--stand"]
HOSTS = [HostInfo("here", 8), HostInfo("here.example.org", 1, gpus=(Gpu(0, "GPU-a", 0), Gpu(1, "GPU-b")))]

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


words = st.one_of(
    st.sampled_from(OWN + TORCHRUNS + ["--", "-", "train.py"]),
    st.tuples(st.sampled_from(OWN + TORCHRUNS), values).map("=".join),
    values,
)


pet_names = st.sampled_from(["PET_" + name[2:].replace("-", "_").upper() for name in (*FLAGS, *VALUED)])


@fuzzed
@given(st.lists(words, max_size=8), st.dictionaries(pet_names, values, max_size=4), st.sampled_from(HOSTS))
@example(["--grace", "inf", "x.py"], {}, HOSTS[0])
@example(["--nproc", HUGE, "x.py"], {"PET_NNODES": HUGE}, HOSTS[0])
@example([f"--dry-run={HUGE}", "x.py"], {"PET_MODULE": "²"}, HOSTS[0])
@example([f"--no\nsuch{HUGE}", "x.py"], {}, HOSTS[0])
@example(["--preempt-signals", HUGE, "x.py"], {"PET_REDIRECTS": f"{HUGE}:1"}, HOSTS[0])
@example(["--start-method", "spawn", "--nproc", "999999999999", "x.py"], {}, HOSTS[0])
@example(["x.py", "--", "--"], {}, HOSTS[0])
@example(["--", "-x.py", "--"], {}, HOSTS[0])
def test_a_command_line_is_understood_or_refused_in_one_line(line, environ, host):
    try:
        request = read(line, environ)
        if request.target is not None:
            topology = Topology({0: frozenset({0, 1})})
            plan = make_plan(request.target, request.options, host, {"OMP_NUM_THREADS": "²"}, topology=topology)
            assert plan.text()
            assert math.isfinite(plan.options.grace)
            again = read([*request.own, *request.rest], environ)
            assert (again.own, again.target) == (request.own, request.target)
    except UsageError as error:
        check(error)


@fuzzed
@given(st.sampled_from(VALUED), st.booleans(), numbers)
def test_an_option_means_the_same_however_it_is_spelled(name, underscored, value):
    def outcome(*line):
        try:
            request = read([*line, "--log-dir", "logs", "train.py", name], {})
        except UsageError as error:
            return str(error)
        return request.options, request.target, request.notes

    spelled = "--" + name[2:].replace("-", "_") if underscored else name
    assert outcome(spelled, value) == outcome(f"{spelled}={value}") == outcome(name, value)
    if SAME.get(name) in ("--nodes", "--grace"):
        assert outcome(name, value) == outcome(SAME[name], value)


cpu_sets = st.dictionaries(st.integers(0, 5), st.frozensets(st.integers(0, 40), min_size=1), min_size=1, max_size=4)


@fuzzed
@given(st.sampled_from(MODES), cpu_sets, st.integers(1, 9), st.dictionaries(st.integers(0, 40), st.integers(0, 3)))
def test_each_worker_is_bound_to_usable_cpus_or_the_binding_is_refused(mode, nodes, nproc, groups):
    topology = Topology(nodes, sockets=groups, cores=groups, caches=groups)
    with suppress(UsageError):
        bound = bind_workers(mode, topology, nproc, [])
        assert len(bound) == nproc
        assert all(cpus and cpus <= frozenset().union(*nodes.values()) for cpus in bound)


@fuzzed
@given(st.text("ab.:[]12345 é\n", max_size=12) | anything)
@example(f"h:{HUGE}")
def test_an_endpoint_is_one_or_refused(text):
    with suppress(UsageError):
        endpoint = parse_endpoint(text)
        assert endpoint.host
        assert 0 <= endpoint.port < 65536
        assert parse_endpoint(str(endpoint)) == endpoint
