import json
import signal
from dataclasses import asdict, replace

import pytest

from minetorch_launch.failures.report import FailureReport, WorkerFailedError, make_report
from minetorch_launch.failures.worker_exit import WorkerExit


def ended(rank, returncode, at=10.0, **more):
    return WorkerExit.observe(rank=rank, host="node1", pid=100 + rank, returncode=returncode, ended_at=at, **more)


def raised(rank, summary, at, **more):
    error = summary.partition(":")[0]
    message = {"time": at, "code": 1, "summary": summary, "traceback": f"Traceback\n{summary}", "error": error}
    return ended(rank, 1, at + 0.1, message={**message, **more.pop("message", {})}, **more)


def lost(rank, at):
    return raised(rank, "RuntimeError: [/x/gloo/pair.cc:5] Connection closed by peer", at, message={"secondary": True})


def called_exit(rank, code, at=1.0):
    return ended(rank, code, at, message={"time": at, "code": code, "summary": f"called sys.exit({code})"})


SIGNALLED = {"signalled_at": 10.5, "signals_sent": frozenset({signal.SIGTERM})}


def test_no_failure_no_report():
    assert make_report([ended(0, 0), ended(1, 0), ended(2, 75), ended(3, None)]) is None


def test_the_earliest_failure_comes_first_whatever_the_order_of_discovery():
    report = make_report([raised(0, "KeyError: 'b'", 12.0), raised(1, "ValueError: a", 11.0)])
    assert (report.first.rank, [failure.rank for failure in report.later]) == (1, [0])
    assert report.line() == "rank 1 failed: ValueError: a"
    assert report.text().endswith("Traceback\nValueError: a")
    assert "then       rank 0 failed: KeyError: 'b'" in report.text()


def test_a_lost_peer_is_never_the_cause_if_there_is_another():
    report = make_report([lost(0, 10.0), lost(2, 10.1), ended(1, -signal.SIGKILL, 10.2)])
    assert report.first.rank == 1
    assert report.exit_code == 137
    assert "ranks 0, 2 failed: RuntimeError: Connection closed by peer" in report.text()


def test_words_of_a_lost_connection_alone_make_no_secondary_failure():
    own = raised(1, "ConnectionRefusedError: [Errno 111] Connection refused", 10.0)
    report = make_report([raised(0, "ValueError: no data", 10.4), own, lost(2, 9.9)])
    assert [report.first.rank, *(failure.rank for failure in report.later)] == [1, 0, 2]
    assert report.first.kind == "exception"


def test_a_rank_that_finished_before_a_lost_peer_is_named():
    report = make_report([lost(0, 10.0), ended(1, 0, 9.0)])
    assert report.first.rank == 0
    assert "before     rank 1 had already finished with exit code 0" in report.text()


def test_a_worker_that_the_launcher_ended_has_not_failed():
    report = make_report(
        [
            raised(0, "ValueError", 10.0),
            ended(1, -signal.SIGTERM, 10.6, **SIGNALLED),
            raised(2, "RuntimeError: in a handler of SIGTERM", 10.7, **SIGNALLED),
            ended(3, 1, 10.7, **SIGNALLED),
            ended(4, 0, 10.7, **SIGNALLED),
        ]
    )
    assert report.later == ()
    assert report.finished == ()


def test_another_signal_than_the_launchers_is_a_failure_even_after_the_stop():
    report = make_report([ended(0, -signal.SIGTERM, 10.6, **SIGNALLED), ended(1, -signal.SIGSEGV, 10.6, **SIGNALLED)])
    assert (report.first.signal, report.first.kind) == ("SIGSEGV", "crash")


def test_a_message_before_the_stop_counts_though_the_process_had_to_be_killed():
    killed = {"signalled_at": 10.5, "signals_sent": frozenset({signal.SIGKILL})}
    report = make_report([replace(raised(0, "ValueError: a", 10.0, **killed))])
    assert (report.exit_code, report.first.cause) == (1, "ValueError: a")


@pytest.mark.parametrize(
    ("exit", "code", "kind", "cause"),
    [
        (ended(0, 5), 5, "exit", "ended with exit code 5 without an exception"),
        (ended(0, -11), 139, "crash", "killed by SIGSEGV"),
        (ended(0, -15), 143, "kill", "killed by SIGTERM"),
        (ended(0, -9), 137, "kill", "killed by SIGKILL (often the kernel's out-of-memory killer: check dmesg)"),
        (ended(0, -9, oom_kills=1), 137, "kill", "killed by SIGKILL: the kernel's out-of-memory killer ended it"),
        (called_exit(0, 3), 3, "exit", "called sys.exit(3)"),
        (raised(0, "KeyboardInterrupt", 1.0, message={"code": -2}), 130, "kill", "KeyboardInterrupt"),
        (ended(0, -15).hung("hung in load", 3.0), 124, "hang", "hung in load"),
        (ended(0, 0).hung("hung in load", 3.0), 124, "hang", "hung in load"),
    ],
)
def test_exit_codes_kinds_and_causes(exit, code, kind, cause):
    report = make_report([exit])
    assert (report.exit_code, report.first.kind) == (code, kind)
    assert report.first.cause.startswith(cause)
    assert f"failed first: {cause}" in report.text()


def test_json_holds_what_the_text_shows():
    report = make_report(
        [raised(0, "ValueError: é", 11.0, log_file="logs/rank_0.log"), ended(1, 0)],
        restarts=2,
        max_restarts=2,
        command="python train.py",
    )
    data = json.loads(report.to_json())
    first = data["first"]
    assert (data["exit_code"], data["restarts"]) == (1, 2)
    assert (first["rank"], first["host"], first["pid"], first["time"]) == (0, "node1", 100, 11.0)
    assert (first["cause"], first["error"], first["signal"]) == ("ValueError: é", "ValueError", None)
    for words in ("python train.py", "node1, process 100", "exit code  1", "2 of 2 used", "logs/rank_0.log"):
        assert words in report.text()


def test_a_hint_stands_before_the_traceback_and_in_json():
    report = make_report([raised(0, "torch.OutOfMemoryError: CUDA out of memory. Tried", 1.0), ended(1, 0)])
    text = report.text()
    assert text.index("  hint       GPU memory is full: ") < text.index("\n\nTraceback")
    assert "\n             smaller pieces" in text
    assert json.loads(report.to_json())["hint"] == report.hint
    assert make_report([raised(0, "ValueError: a", 1.0)]).hint is None


def test_the_reason_for_no_restart_is_shown_unless_all_were_used():
    report = make_report([raised(0, "ValueError: a", 1.0)], restarts=1, max_restarts=3)
    told = replace(report, reason="the same failure twice")
    assert "  restarts   1 of 3 used; the same failure twice\n" in told.text()
    assert "  restarts   3 of 3 used\n" in replace(told, restarts=3).text()


def test_exits_and_reports_survive_the_way_to_another_node():
    exits = [raised(0, "MemoryError", 1.0), lost(2, 1.5), ended(1, 0), ended(3, -15, **SIGNALLED)]
    assert [WorkerExit(**json.loads(json.dumps(asdict(exit)))) for exit in exits] == exits
    report = make_report(exits, restarts=1, max_restarts=1, command="python a")
    assert report.hint
    assert FailureReport.from_dict(json.loads(json.dumps(asdict(report)))) == report


def test_the_error_that_launch_raises():
    report = make_report([raised(0, "ValueError: a", 1.0)])
    cause = ValueError("a")
    error = WorkerFailedError(report, exception=cause)
    assert (str(error), error.exit_code, error.exception) == (report.text(), 1, cause)
    elsewhere = WorkerFailedError(report, shown_elsewhere=True)
    assert str(elsewhere) == "minetorch-launch: rank 0 failed: ValueError: a; the whole launch ends"
