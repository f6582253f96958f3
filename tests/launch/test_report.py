import json
import signal
from dataclasses import replace

from minetorch_launch.failures.report import FailureReport, WorkerEnd, make_report, tidy_crash


def end(rank, exit_code, ended_at=10.0, **more):
    return WorkerEnd(rank=rank, host="node1", pid=100 + rank, exit_code=exit_code, ended_at=ended_at, **more)


def said(rank, summary, ended_at, code=1, **more):
    return end(rank, 1, ended_at, said_code=code, summary=summary, traceback=f"Traceback\n{summary}", **more)


def test_no_failure_no_report():
    assert make_report([end(0, 0), end(1, 0)]) is None


def test_the_earliest_failure_comes_first_whatever_the_order_of_discovery():
    report = make_report([said(0, "KeyError: 'b'", 12.0), said(1, "ValueError: a", 11.0)])
    assert (report.first.rank, [failure.rank for failure in report.later]) == (1, [0])
    assert report.line() == "rank 1 failed: ValueError: a"
    assert report.text().endswith("Traceback\nValueError: a")
    assert "then       rank 0 failed: KeyError: 'b'" in report.text()


def test_a_lost_peer_is_never_the_cause_if_there_is_another():
    lost = "RuntimeError: [/x/gloo/pair.cc:5] Connection closed by peer [127.0.0.1]:1"
    report = make_report([said(0, lost, 10.0), said(2, lost, 10.1), end(1, -signal.SIGKILL, 10.2)])
    assert report.first.rank == 1
    assert report.exit_code == 137
    assert "ranks 0, 2 failed: RuntimeError: Connection closed by peer" in report.text()


def test_a_rank_that_ended_well_before_a_lost_peer_is_named():
    report = make_report([said(0, "RuntimeError: Connection closed by peer", 10.0), end(1, 0, 9.0)])
    assert report.first.rank == 0
    assert "before     rank 1 had already ended with exit code 0" in report.text()


def test_what_the_launcher_stopped_has_not_failed():
    told = {"told_at": 10.5, "told": frozenset({signal.SIGTERM})}
    report = make_report(
        [
            said(0, "ValueError", 10.0),
            end(1, -signal.SIGTERM, 10.6, **told),
            said(2, "RuntimeError: in a handler of SIGTERM", 10.7, **told),
            end(3, 1, 10.7, **told),
        ]
    )
    assert report.later == ()


def test_another_signal_than_the_launchers_is_a_failure_even_after_the_stop():
    told = {"told_at": 10.5, "told": frozenset({signal.SIGTERM})}
    report = make_report([end(0, -signal.SIGTERM, 10.6, **told), end(1, -signal.SIGSEGV, 10.6, **told)])
    assert report.first.signal == "SIGSEGV"


def test_last_words_before_the_stop_count_though_the_process_had_to_be_killed():
    ended = said(0, "ValueError: a", 10.0, told_at=10.5, told=frozenset({signal.SIGKILL}))
    assert make_report([ended]).exit_code == 1


def test_exit_codes_and_causes():
    assert make_report([end(0, 5)]).exit_code == 5
    assert "exit code 5 without an exception" in make_report([end(0, 5)]).text()
    assert make_report([end(0, -11)]).exit_code == 139
    assert make_report([said(0, "called sys.exit(3)", 1.0, code=3)]).exit_code == 3
    assert make_report([said(0, "KeyboardInterrupt", 1.0, code=-2)]).exit_code == 130


def test_json_holds_what_the_text_says():
    report = make_report(
        [said(0, "ValueError: é", 11.0, log_file="logs/rank_0.log"), end(1, 0)],
        restarts=2,
        max_restarts=2,
        command="python train.py",
    )
    data = json.loads(report.to_json())
    assert data["exit_code"] == 1
    assert data["first"]["rank"] == 0
    assert data["first"]["host"] == "node1"
    assert data["first"]["pid"] == 100
    assert data["first"]["cause"] == "ValueError: é"
    assert data["restarts"] == 2
    for words in ("python train.py", "node1, process 100", "exit code  1", "2 of 2 used", "logs/rank_0.log"):
        assert words in report.text()


def test_tidy_crash_keeps_each_threads_own_frames():
    text = (
        "Fatal Python error: Segmentation fault\n\nThread 0x1 (most recent call first):\n"
        '  File "/lib/threading.py", line 1 in run\n\nCurrent thread 0x2 (most recent call first):\n'
        '  File "/home/a/train.py", line 9 in <module>\n'
        '  File "/site/minetorch_launch/worker.py", line 2 in _run_script\n'
        '  File "/site/torch/spawn.py", line 3 in _wrap\n\n'
        "Extension modules: numpy (total: 1)\n"
    )
    assert tidy_crash(text).splitlines()[-2:] == [
        "Current thread 0x2 (most recent call first):",
        '  File "/home/a/train.py", line 9 in <module>',
    ]
    assert "threading.py" in tidy_crash(text)


def test_advice_stands_before_the_traceback_and_in_json():
    report = make_report([said(0, "torch.OutOfMemoryError: CUDA out of memory. Tried", 1.0), end(1, 0)])
    text = report.text()
    assert text.index("  advice     GPU memory ran out: ") < text.index("\n\nTraceback")
    assert "\n             smaller pieces" in text
    assert json.loads(report.to_json())["advice"] == report.advice
    assert make_report([said(0, "ValueError: a", 1.0)]).advice is None


def test_a_kill_of_the_kernels_is_told_from_others_on_its_host_only():
    report = make_report([end(0, -9)], oom_kills={"node1": 1})
    assert report.first.cause == "killed by SIGKILL: the kernel's out-of-memory killer struck"
    assert "--nproc" in report.advice
    for kills in ({}, {"node2": 1}, {"node1": 0}):
        report = make_report([end(0, -9)], oom_kills=kills)
        assert "if nobody did that" in report.first.cause
        assert report.advice is None


def test_why_there_was_no_restart_is_told_unless_they_were_used_up():
    report = make_report([said(0, "ValueError: a", 1.0)], restarts=1, max_restarts=3)
    told = replace(report, because="the same failure twice")
    assert "  restarts   1 of 3 used; the same failure twice\n" in told.text()
    assert "  restarts   3 of 3 used\n" in replace(told, restarts=3).text()
    assert json.loads(told.to_json())["because"] == "the same failure twice"


def test_a_report_survives_its_way_to_another_node():
    report = make_report(
        [said(0, "MemoryError", 1.0), said(2, "KeyError: 'a'", 1.5), end(1, 0)],
        restarts=1,
        max_restarts=1,
        command="python a",
    )
    assert report.advice
    assert FailureReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
