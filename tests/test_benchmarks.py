"""The benchmarks run, and tell what they measure; none of their figures is asserted."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import page, peers
from benchmarks.__main__ import names
from benchmarks.harness import OURS, Figure, Row, Target, interleave, load, machine, markdown, save, written
from benchmarks.processes import DiedError, Tree, count_opened_files, environment

ROOT = Path(__file__).parents[1]
NAN = math.nan


def row(ours, theirs, **more):
    return Row.of("launch", "2 workers", "s", {OURS: ours, "torchrun": theirs}, **more)


def test_contenders_run_by_turns_after_a_warm_up():
    calls = []

    def contender(name):
        calls.append(name)
        return float(len(calls))

    figures = interleave({"a": lambda: contender("a"), "b": lambda: contender("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert figures == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert interleave({"a": lambda: contender("a")}, 1, warm_up=False) == {"a": [7.0]}


def test_ratios_are_those_within_a_round():
    measured = row([1.0, 10.0, 3.0], [2.0, 20.0, 3.0])
    assert measured.figures[OURS] == Figure(median=3.0, low=1.0, high=10.0, rounds=3)
    assert measured.ratios["torchrun"] == Figure(median=0.5, low=0.5, high=1.0, rounds=3)


def test_a_round_that_failed_is_told_and_not_counted():
    measured = row([1.0, 2.0], [NAN, 4.0], target=Target("torchrun", 0.5))
    assert measured.figures["torchrun"] == Figure(4.0, 4.0, 4.0, rounds=2, failed=1)
    assert measured.verdict == "met"
    assert "4.00 s, 1 of 2 failed" in markdown([measured])
    assert row([1.0], [NAN], target=Target("torchrun", 0.5)).verdict == "not measured"


@pytest.mark.parametrize(("at_most", "verdict"), [(0.5, "met"), (0.49, "missed")])
def test_a_target_is_met_or_missed(at_most, verdict):
    measured = row([1.0], [2.0], target=Target("torchrun", at_most), floor=0.5, note="why")
    assert measured.verdict == verdict
    text = markdown([measured, measured])
    assert f"| ≤ {at_most:.2f} | {verdict} | 500 ms | 2.00 |" in text
    assert text.count("(a) why") == 1


def test_what_could_not_be_measured_is_marked():
    text = markdown([Row("launch", "GPU", "s", target=Target("torchrun", 0.5), note="needs 2 GPUs")])
    assert "| GPU (a) | unmeasured | torchrun |" in text
    assert "not measured" in text
    assert "(a) needs 2 GPUs" in text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12.34, "s", "12.3 s"),
        (0.0001234, "s", "123 µs"),
        (2048, "MiB", "2.00 GiB"),
        (3313, "", "3,313"),
        (0, "s", "0 s"),
    ],
)
def test_figures_have_three_digits(value, unit, text):
    assert written(float(value), unit) == text


def test_rows_come_back_from_their_file(tmp_path):
    rows = [
        row([1.0], [NAN], target=Target("torchrun", 0.5), floor=0.1),
        Row("launch", "GPU", "s", note="needs 2 GPUs"),
    ]
    save(tmp_path / "rows.json", rows)
    assert markdown(load(tmp_path / "rows.json")) == markdown(rows)
    assert json.loads((tmp_path / "rows.json").read_text())["machine"]["torch"]


def test_the_page_has_a_part_for_each_benchmark(tmp_path):
    copy = tmp_path / "benchmarks.md"
    copy.write_text(page.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    for name in names():
        assert "new part" in page.replaced(copy.read_text(encoding="utf-8"), name, "new part")
    page.write([row([1.0], [2.0])], machine(), copy, tmp_path)
    assert "**0.50** (0.50 to 0.50)" in copy.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="no part for nothing"):
        page.replaced("", "nothing", "")


def test_curves_over_workers_are_drawn(tmp_path):
    rows = [
        Row.of("launch", f"{count} workers: time", "s", {OURS: [1.0], "torchrun": [float(count)]})
        for count in (2, 4, 8)
    ]
    [(file, _)] = page.plots.draw("launch", rows, tmp_path)
    assert file.read_bytes().startswith(b"\x89PNG")
    assert page.plots.draw("launch", rows[:2], tmp_path) == []


def test_a_tree_tells_what_all_of_it_took_and_leaves_nothing(tmp_path):
    burn = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    orphan = f"{sys.executable} -c '{burn}' & exit 0"
    with Tree(["sh", "-c", orphan], environment(), tmp_path) as tree:
        assert 0.3 <= tree.finish(60) < 5
    with Tree(["sh", "-c", "sleep 600 & sleep 600"], environment(), tmp_path) as tree:
        tree.wait_for(lambda: len(tree.pids()) == 3, 60)
        assert tree.memory() > 0
        with pytest.raises(DiedError, match="nothing within"):
            tree.wait_for(lambda: False, 0.05)
        left = tree.pids()
    assert not [pid for pid in left if Path(f"/proc/{pid}").exists()]
    failing = Tree(["sh", "-c", "echo gone wrong; exit 3"], environment(), tmp_path)
    with failing, pytest.raises(DiedError, match=r"exit code 3:\s+gone wrong"):
        failing.finish(60)


def test_what_others_start_meanwhile_is_not_the_trees(tmp_path):
    other = subprocess.Popen(["sh", "-c", "read go; sleep 600 & wait"], stdin=subprocess.PIPE, start_new_session=True)
    try:
        with Tree(["sleep", "0.5"], environment(), tmp_path) as tree:
            other.stdin.write(b"\n")
            other.stdin.close()
            children = Path(f"/proc/{other.pid}/task/{other.pid}/children")
            tree.wait_for(children.read_text, 60)
            assert len(tree.pids()) == 1
            tree.finish(60)
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()


def test_opened_files_are_counted(tmp_path):
    few, more = (
        count_opened_files([sys.executable, "-S", "-c", f"for _ in range({n}): open('/dev/null')"], environment(), 60)
        for n in (0, 50)
    )
    if few is None:
        pytest.skip("strace is not installed")
    assert more == few + 50


def test_a_peer_that_is_not_installed_is_left_out_with_a_word(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINETORCH_BENCHMARKS", str(tmp_path))
    assert peers.find("lightning", make=False) == {}
    assert "left out: lightning is not installed" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_all_of_them_run(tmp_path):
    """Without peers that would have to be installed, so that it takes as long wherever it runs."""
    file = tmp_path / "rows.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--json", file],
        cwd=ROOT,
        env={**os.environ, "MINETORCH_BENCHMARKS": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = load(file)
    assert {each.benchmark for each in rows} == set(names())
    for each in rows:
        assert each.note if not each.figures else not math.isnan(each.figures[OURS].median), each
    assert "left out: lightning is not installed" in done.stderr
    assert done.stdout.count("| what | Minetorch |") == len(names())


def test_an_unknown_name_lists_the_known_ones():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "speed"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"there is no benchmark speed; there are {', '.join(names())}" in done.stderr
