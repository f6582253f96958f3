import pytest

from minetorch_launch.errors import EXIT_HUNG
from minetorch_launch.failures.report import FailureReport, WorkerEnd, make_report
from minetorch_launch.failures.restarts import Attempt, RestartCost, decide

TRACE = 'Traceback (most recent call last):\n  File "/home/a/train.py", line {line}, in <module>\n    step()\n{error}\n'


def report(rank=0, **end):
    return make_report([WorkerEnd(rank=rank, host="n", pid=1, **{"exit_code": 1, "ended_at": 1.0, **end})])


def raised(error="ValueError: a", line=88, rank=0, traceback=None):
    trace = TRACE.format(line=line, error=error) if traceback is None else traceback
    return report(rank, said_code=1, summary=error, traceback=trace)


def exited(code, rank=0):
    return report(rank, said_code=code, summary=f"called sys.exit({code})")


def killed(signum, rank=0):
    return report(rank, exit_code=-signum)


def hung(rank=0):
    return report(rank, exit_code=-15, said_code=EXIT_HUNG, summary=f"rank {rank} hung in next(loader) at data.py:4")


def lost(rank=0):
    return raised("RuntimeError: [/x/gloo/pair.cc:5] Connection closed by peer [127.0.0.1]:1", rank=rank)


def of_trainer(failure, reached=0, began=0):
    return Attempt(failure, reached, began, uses_trainer=True)


def before_any_beat(failure):
    return Attempt(failure, None, None, uses_trainer=True)


def plain(failure):
    return Attempt(failure, None, None, uses_trainer=False)


OWN_DOING = [raised(), exited(3), exited(2), report(exit_code=5), *map(killed, (11, 6, 8, 4, 7))]
FROM_OUTSIDE = [killed(9), killed(15), killed(2), killed(1), hung(), lost()]


def name(failure):
    return failure.first.cause[:20] if isinstance(failure, FailureReport) else None


def test_failures_are_used_up():
    attempts = [of_trainer(raised(line=line), 10 * line, 0) for line in range(1, 4)]
    assert decide(attempts[:2], 2).restart
    assert decide(attempts[:2], 2).because == "restart 2 of 2 of all workers"
    assert decide(attempts, 2).because == "all 2 restarts are used up"
    assert not decide(attempts, 2).restart
    assert decide(attempts[:1], 0).because == "no restart was allowed (--max-restarts 0)"
    assert decide(attempts[:2], 1).because == "the one restart is used up"


@pytest.mark.parametrize("failure", OWN_DOING, ids=name)
@pytest.mark.parametrize(
    ("reached", "began"), [(None, None), (0, None), (0, 0), (90, 90)], ids=["no beat", "not begun", "new", "resumed"]
)
def test_the_trainers_start_is_not_tried_again(failure, reached, began):
    decision = decide([Attempt(failure, reached, began, uses_trainer=True)], 3)
    assert not decision.restart
    assert decision.because == "failed before its first step: a restart would fail the same way"


@pytest.mark.parametrize("failure", FROM_OUTSIDE, ids=name)
@pytest.mark.parametrize(("reached", "began"), [(None, None), (0, 0), (90, 90)])
def test_what_comes_from_outside_before_the_first_step_is_tried_again(failure, reached, began):
    assert decide([Attempt(failure, reached, began, uses_trainer=True)], 3).restart


@pytest.mark.parametrize("failure", OWN_DOING + FROM_OUTSIDE, ids=name)
def test_a_failure_after_a_step_is_tried_again(failure):
    assert decide([of_trainer(failure, 100, 90)], 3).restart
    assert decide([of_trainer(killed(9, rank=3), 50, 0), of_trainer(failure, 100, 50)], 3).restart


def test_a_start_error_after_a_kill_at_the_start_is_still_one():
    assert not decide([before_any_beat(killed(9)), before_any_beat(raised())], 3).restart


def test_a_failing_resume_is_not_a_start_error_but_may_be_a_repetition():
    stepped = of_trainer(killed(9), 100, 0)
    assert decide([stepped, of_trainer(raised(), 90, 90)], 3).restart
    assert not decide([stepped, of_trainer(raised(), 90, 90), of_trainer(raised(), 90, 90)], 3).restart


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (raised("ModuleNotFoundError: No module named 'x'"), "the same ModuleNotFoundError"),
        (raised("ImportError: cannot import name 'x'"), "the same ImportError"),
        (raised("SyntaxError: invalid syntax"), "the same SyntaxError"),
        (raised("IndentationError: unexpected indent"), "the same IndentationError"),
        (raised("FileNotFoundError: [Errno 2] 'train.py'", traceback="FileNotFoundError: ..."), "FileNotFoundError"),
        (exited(2), "the same usage error"),
    ],
)
def test_plain_scripts_start_errors_by_nature(failure, error):
    decision = decide([plain(failure)], 3)
    assert not decision.restart
    assert decision.because.startswith("a restart would meet ")
    assert decision.because.endswith(error)


@pytest.mark.parametrize(
    "failure",
    [
        raised(),
        raised("FileNotFoundError: [Errno 2] No such file or directory: 'data.bin'"),
        exited(3),
        killed(11),
        killed(9),
        hung(),
        report(exit_code=2),
    ],
    ids=name,
)
def test_nothing_is_known_of_a_plain_scripts_progress(failure):
    attempts = [plain(failure)] * 3
    assert all(decide(attempts[:count], 3).restart for count in (1, 2, 3))


@pytest.mark.parametrize(
    ("failure", "place"),
    [
        (raised(), "ValueError at /home/a/train.py:88"),
        (exited(3, rank=2), "exit code 3 on rank 2"),
        (report(exit_code=5), "exit code 5 on rank 0"),
        (killed(11, rank=1), "SIGSEGV on rank 1"),
    ],
    ids=name,
)
def test_the_scripts_own_failure_must_come_further_the_second_time(failure, place):
    first = of_trainer(failure, 100, 0)
    for reached in (95, 100):
        decision = decide([first, of_trainer(failure, reached, 90)], 3)
        assert not decision.restart
        assert decision.because == (
            f"the same failure twice ({place}) with no step gained in between: a restart would fail the same way"
        )
    assert decide([first, of_trainer(failure, 101, 90)], 3).restart


@pytest.mark.parametrize("failure", FROM_OUTSIDE, ids=name)
def test_what_comes_from_outside_needs_but_one_step(failure):
    first = of_trainer(failure, 100, 0)
    assert decide([first, of_trainer(failure, 91, 90)], 3).restart
    assert not decide([first, of_trainer(failure, 90, 90)], 3).restart
    assert not decide([first, before_any_beat(failure)], 3).restart
    assert "the same failure twice" in decide([first, before_any_beat(failure)], 3).because


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (raised(line=88), raised(line=89)),
        (raised("ValueError: a"), raised("KeyError: 'a'")),
        (killed(9, rank=0), killed(9, rank=1)),
        (killed(9), killed(15)),
        (exited(3), exited(4)),
        (exited(3, rank=0), exited(3, rank=1)),
        (raised(), killed(11)),
        (hung(), report(said_code=EXIT_HUNG, summary=f"called sys.exit({EXIT_HUNG})")),
    ],
)
def test_different_failures_are_not_the_same(one, other):
    assert decide([of_trainer(one, 100, 0), of_trainer(other, 100, 90)], 3).restart


def test_an_exception_is_the_same_on_any_rank_and_with_any_words():
    attempts = [
        of_trainer(raised("ValueError: a", rank=0), 100, 0),
        of_trainer(raised("ValueError: b", rank=1), 100, 90),
    ]
    assert not decide(attempts, 3).restart


def test_another_failure_in_between_hides_no_repetition():
    bug = raised()
    attempts = [of_trainer(bug, 100, 0), of_trainer(killed(9), 95, 90), of_trainer(bug, 100, 90)]
    assert decide(attempts[:2], 5).restart
    assert not decide(attempts, 5).restart
    gained = [of_trainer(killed(9), 100, 0), of_trainer(raised(), 120, 90), of_trainer(killed(9), 120, 120)]
    assert decide(gained, 5).restart


def test_the_place_is_the_scripts_innermost_line_not_the_librarys():
    deep = (
        'Traceback (most recent call last):\n  File "/home/a/train.py", line {line}, in <module>\n    main()\n'
        '  File "/home/a/model.py", line 7, in forward\n    x @ w\n'
        '  File "/env/lib/python3.11/site-packages/torch/nn/module.py", line {torch}, in call\n    y\n'
        "RuntimeError: mat1 and mat2 shapes cannot be multiplied\n"
    )
    error = "RuntimeError: mat1 and mat2 shapes cannot be multiplied"
    one = raised(error, traceback=deep.format(line=1, torch=100))
    other = raised(error, traceback=deep.format(line=2, torch=200))
    decision = decide([of_trainer(one, 100, 0), of_trainer(other, 100, 90)], 3)
    assert not decision.restart
    assert "RuntimeError at /home/a/model.py:7" in decision.because


def test_the_place_of_a_chained_exception_is_that_of_the_last():
    chained = (
        TRACE.format(line=5, error="KeyError: 'a'") + "\nDuring handling of …:\n\n" + TRACE.format(line=9, error="")
    )
    decision = decide([of_trainer(raised(traceback=chained), 9, 0), of_trainer(raised(traceback=chained), 9, 0)], 3)
    assert "train.py:9" in decision.because


def test_the_cost_in_a_line():
    cost = RestartCost(None, 0.02, 0.03, 0.05, 0.31)
    assert cost.line(1, 3) == (
        "restart 1 of 3 took 0.41 s: stopping 0.02, rendezvous 0.03, starting 0.05, to the first step 0.31 s"
    )


@pytest.mark.parametrize(
    ("cost", "line"),
    [
        (RestartCost(), "restart 2 of 5"),
        (RestartCost(noticed=1, stopped=2), "restart 2 of 5 took 3.00 s: noticing 1.00, stopping 2.00 s"),
        (RestartCost(noticed=-0.2, started=0.5), "restart 2 of 5 took 0.50 s: noticing 0.00, starting 0.50 s"),
    ],
)
def test_what_is_not_known_of_the_cost_is_left_out(cost, line):
    assert cost.line(2, 5) == line


@pytest.mark.slow
def test_a_real_start_error_of_a_trainers_script_is_not_tried_again(launches):
    script = launches.script("import minetorch\nraise ValueError('of the start')")
    done = launches.run("--nproc", 2, "--max-restarts", 2, script)
    assert done.returncode == 1
    # The report's first line, the line of code, the exception; whether the other rank came to its own is chance.
    told = [line for line in done.stderr.splitlines() if "of the start" in line and not line.startswith("  then")]
    assert len(told) == 3
    because = "failed before its first step: a restart would fail the same way"
    assert f"  restarts   0 of 2 used; {because}\n" in done.stderr
