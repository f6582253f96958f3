import pytest

from minetorch_launch.failures.report import make_report
from minetorch_launch.failures.restart_policy import Attempt, Restart, RestartPolicy
from minetorch_launch.failures.worker_exit import WorkerExit

PLACE = "/home/a/train.py:88"


def report(rank=0, returncode=1, hang=None, **message):
    said = {"time": 1.0, "code": 1, **message} if message else None
    exit = WorkerExit.observe(rank=rank, host="n", pid=1, returncode=returncode, ended_at=1.0, message=said)
    return make_report([exit.hung(hang, 2.0) if hang else exit])


def raised(error="ValueError", place=PLACE, rank=0, **message):
    return report(rank, summary=f"{error}: a", error=error, place=place, **message)


def exited(code, rank=0):
    return report(rank, code=code, summary=f"called sys.exit({code})")


def killed(signum, rank=0):
    return report(rank, -signum)


def hung(rank=0):
    return report(rank, -15, hang="hung in next(loader) at data.py:4")


def lost(rank=0):
    return raised("RuntimeError", rank=rank, secondary=True)


def decide(attempts, max_restarts=3, mode="auto"):
    return RestartPolicy(max_restarts, mode).decide(attempts)


OWN_DOING = [raised(), exited(3), report(returncode=5), *map(killed, (11, 6, 8, 4, 7))]
FROM_OUTSIDE = [killed(9), killed(15), killed(2), killed(1), hung(), lost()]


def name(failure):
    return failure.first.cause[:20] if hasattr(failure, "first") else None


def test_restarts_are_counted():
    attempts = [Attempt(raised(place=f"a.py:{line}"), 10 * line, 0) for line in range(1, 4)]
    assert decide(attempts[:2], 2).restart
    assert decide(attempts[:2], 2).reason == "restart 2 of 2 of all workers"
    assert decide(attempts, 2).reason == "all 2 restarts are used"
    assert not decide(attempts, 2).restart
    assert decide(attempts[:1], 0).reason == "no restart is allowed (--max-restarts 0)"
    assert decide(attempts[:2], 1).reason == "the only restart is used"


@pytest.mark.parametrize("failure", OWN_DOING + FROM_OUTSIDE, ids=name)
@pytest.mark.parametrize(("reached", "began"), [(None, None), (0, None), (0, 0), (90, 90)])
def test_a_failure_before_the_first_step_may_be_transient(failure, reached, began):
    assert decide([Attempt(failure, reached, began)]).restart


@pytest.mark.parametrize("failure", OWN_DOING + FROM_OUTSIDE, ids=name)
def test_a_failure_after_a_step_is_tried_again(failure):
    assert decide([Attempt(failure, 100, 90)]).restart
    assert decide([Attempt(killed(9, rank=3), 50, 0), Attempt(failure, 100, 50)]).restart


START_ERRORS = [
    (raised("ModuleNotFoundError"), "the same ModuleNotFoundError"),
    (raised("ImportError"), "the same ImportError"),
    (raised("SyntaxError"), "the same SyntaxError"),
    (raised("IndentationError"), "the same IndentationError"),
    (raised("FileNotFoundError", place=""), "the same FileNotFoundError"),
    (exited(2), "the same usage error"),
]


@pytest.mark.parametrize(("failure", "error"), START_ERRORS, ids=name)
def test_errors_of_the_start_by_their_nature_are_not_tried_again(failure, error):
    for attempt in (Attempt(failure), Attempt(failure, 90, 90)):
        decision = decide([attempt])
        assert not decision.restart
        assert decision.reason == f"a restart would end with {error}"
    assert decide([Attempt(failure, 100, 90)]).restart


def test_a_missing_file_of_the_scripts_own_is_tried_again():
    assert decide([Attempt(raised("FileNotFoundError"))]).restart


@pytest.mark.parametrize("failure", OWN_DOING + FROM_OUTSIDE, ids=name)
def test_nothing_is_known_about_the_steps_of_a_plain_script(failure):
    attempts = [Attempt(failure)] * 3
    assert all(decide(attempts[:count]).restart for count in (1, 2, 3))


def test_the_same_start_of_a_trainer_twice_is_a_repetition():
    attempt = Attempt(raised(uses_trainer=True))
    assert decide([attempt]).restart
    assert not decide([attempt, attempt]).restart
    assert decide([attempt, Attempt(raised(place="/home/a/train.py:90", uses_trainer=True))]).restart


@pytest.mark.parametrize(
    ("failure", "place"),
    [
        (raised(), f"ValueError at {PLACE}"),
        (exited(3, rank=2), "exit code 3 on rank 2"),
        (report(returncode=5), "exit code 5 on rank 0"),
        (killed(11, rank=1), "SIGSEGV on rank 1"),
    ],
    ids=name,
)
def test_the_scripts_own_failure_must_come_further_the_second_time(failure, place):
    first = Attempt(failure, 100, 0)
    for reached in (95, 100):
        decision = decide([first, Attempt(failure, reached, 90)])
        assert not decision.restart
        assert decision.reason == (
            f"the same failure twice ({place}) with no step gained in between: a restart would fail the same way"
        )
    assert decide([first, Attempt(failure, 101, 90)]).restart


@pytest.mark.parametrize("failure", FROM_OUTSIDE, ids=name)
def test_a_failure_from_outside_needs_one_step_only(failure):
    first = Attempt(failure, 100, 0)
    assert decide([first, Attempt(failure, 91, 90)]).restart
    assert not decide([first, Attempt(failure, 90, 90)]).restart
    assert not decide([first, Attempt(failure)]).restart


def test_steps_that_are_counted_from_zero_in_each_attempt_are_not_compared():
    assert decide([Attempt(raised(), 100, None), Attempt(raised(), 10, None)]).restart
    assert not decide([Attempt(raised(), 100, None), Attempt(raised(), 0, None)]).restart


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (raised(), raised(place="/home/a/train.py:89")),
        (raised("ValueError"), raised("KeyError")),
        (killed(9, rank=0), killed(9, rank=1)),
        (killed(9), killed(15)),
        (exited(3), exited(4)),
        (exited(3, rank=0), exited(3, rank=1)),
        (raised(), killed(11)),
        (hung(), exited(124)),
    ],
)
def test_different_failures_are_not_the_same(one, other):
    assert decide([Attempt(one, 100, 0), Attempt(other, 100, 90)]).restart


def test_an_exception_is_the_same_on_any_rank():
    assert not decide([Attempt(raised(rank=0), 100, 0), Attempt(raised(rank=1), 100, 90)]).restart


def test_another_failure_in_between_hides_no_repetition():
    attempts = [Attempt(raised(), 100, 0), Attempt(killed(9), 95, 90), Attempt(raised(), 100, 90)]
    assert decide(attempts[:2], 5).restart
    assert not decide(attempts, 5).restart
    gained = [Attempt(killed(9), 100, 0), Attempt(raised(), 120, 90), Attempt(killed(9), 120, 120)]
    assert decide(gained, 5).restart


@pytest.mark.parametrize("failure", [failure for failure, _ in START_ERRORS] + OWN_DOING, ids=name)
def test_always_retries_every_failure_as_often_as_allowed(failure):
    attempts = [Attempt(failure, 100, 100)] * 4
    assert all(decide(attempts[:count], mode="always").restart for count in (1, 2, 3))
    assert not decide(attempts, mode="always").restart


@pytest.mark.parametrize(
    ("first_step_at", "total", "end"), [(2.5, "2.00", ", first step 1.00 s"), (None, "1.00", " s")]
)
def test_the_cost_of_a_restart_in_a_line(first_step_at, total, end):
    # The failure's own clock may be ahead of the launcher's.
    restart = Restart(2, reached=7, failed_at=0.6, noticed_at=0.5, stopped_at=0.75, joined_at=1.25, started_at=1.5)
    parts = "noticed 0.00, stopped 0.25, rendezvous 0.50, started 0.25"
    assert restart.cost(5, first_step_at) == f"restart 2 of 5 took {total} s: {parts}{end}"


@pytest.mark.slow
def test_an_import_error_is_not_tried_again(launches):
    script = launches.script("import no_such_module")
    done = launches.run("--nproc", 2, "--max-restarts", 2, script)
    assert done.returncode == 1
    assert "  restarts   0 of 2 used; a restart would end with the same ModuleNotFoundError\n" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("uses_trainer", [True, False])
def test_a_transient_error_before_the_first_step_is_tried_again(launches, uses_trainer):
    script = launches.script(
        f"""
        import os
        {"import minetorch" if uses_trainer else ""}
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            raise TimeoutError("503 SlowDown")
        print("done")
        """
    )
    done = launches.run("--max-restarts", 2, script)
    assert (done.returncode, done.stdout.count("done")) == (0, 1)
