"""The matrix itself: which cells there are, what must come of them, and how they are shown. Nothing is launched."""

import re

import pytest

from tests.faults import summary
from tests.faults.cells import FAULTS, PHASES, VICTIMS, Cell, every_cell, excluded, expected, possible
from tests.faults.representative import chosen, missing
from tests.faults.trial import Verdict


def test_every_cell_is_run_or_says_why_not():
    cells = every_cell()
    assert len(cells) == len(set(cells)) == len(FAULTS) * len(VICTIMS) * len(PHASES)
    for cell in cells:
        reason = excluded(cell)
        assert reason is None or re.fullmatch(r"\w.{20,}[^.]", reason), cell
    assert set(possible()) == {cell for cell in cells if excluded(cell) is None}


def test_every_fault_victim_and_phase_is_tried():
    cells = possible()
    assert {cell.fault for cell in cells} == set(FAULTS)
    assert {cell.victim for cell in cells} == set(VICTIMS)
    assert {cell.phase for cell in cells} == set(PHASES)


def test_any_signal_can_come_to_any_worker_at_any_moment_of_its_life():
    for victim in ("rank 0", "rank 1"):
        for fault in ("SIGKILL", "SIGSEGV", "SIGABRT"):
            assert {cell.phase for cell in possible() if (cell.fault, cell.victim) == (fault, victim)} == {*PHASES} - {
                "rendezvous"
            }


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("exception / launcher / import", "no code of the script's"),
        ("collective skipped / loader worker / mid-epoch", "no collective"),
        ("cut link / rank 0 / mid-epoch", "one machine"),
        ("S3 503 / rank 1 / upload", "rank 0 alone"),
        ("SIGKILL / rank 0 / rendezvous", "before which there is no worker"),
        ("SIGKILL / loader worker / import", "no loader worker lives"),
        ("sys.exit / rank 0 / commit", "the thread that saves"),
        ("GIL held / rank 1 / staging", "only a signal comes through"),
        ("SIGSTOP / rank 1 / exit", "nobody can tell"),
        ("out of memory / agent / upload", "is a SIGKILL"),
        ("S3 truncated / rank 0 / import", "an upload"),
        ("full disk / rank 0 / exit", "let go of the storage"),
    ],
)
def test_what_cannot_be_says_why(cell, words):
    assert words in (excluded(Cell.parse(cell)) or "it is run")


@pytest.mark.parametrize(
    ("cell", "outcomes", "code", "rank"),
    [
        ("SIGKILL / rank 1 / import", ("restarts",), 137, 1),
        ("exception / rank 1 / first step", ("restarts", "ends"), 1, 1),
        ("exception / rank 1 / mid-epoch", ("restarts",), 1, 1),
        ("sys.exit / rank 0 / exit", ("restarts",), 7, 0),
        ("GIL held / loader worker / validation", ("restarts",), 124, 0),
        ("SIGABRT / loader worker / commit", ("restarts",), 1, 0),
        ("SIGSEGV / launcher / commit", ("dies",), -11, None),
        ("SIGTERM ignored / rank 1 / upload", ("stops",), 143, None),
        ("read-only disk / rank 0 / upload", ("ends",), 1, 0),
        ("cut link / agent / exit", ("rejoins",), 0, None),
        ("SIGKILL / agent / rendezvous", ("dies",), -9, None),
        ("S3 black-out / rank 0 / commit", ("goes on",), 0, None),
    ],
)
def test_what_must_come_of_it(cell, outcomes, code, rank):
    want = expected(Cell.parse(cell))
    assert (want.outcomes, want.exit_code, want.rank) == (outcomes, code, rank)
    assert want.within_s <= 120


def test_a_cell_is_its_name():
    for cell in every_cell():
        assert Cell.parse(str(cell)) == cell
    with pytest.raises(ValueError, match="'SIGWINCH' is none of"):
        Cell.parse("SIGWINCH / rank 0 / import")


def test_the_chosen_show_every_victim_and_phase():
    assert missing() == []
    assert set(chosen()) <= set(possible())


def test_the_table_counts_what_was_run():
    cells = [str(cell) for cell in possible() if (cell.fault, cell.victim) == ("GIL held", "rank 0")]
    verdicts = [Verdict(cells[0], noticed_s=2.0), Verdict(cells[1], problems=["no"], noticed_s=4.0)]
    text = summary.table(verdicts)
    assert f"| GIL held | 1/{len(cells)} (1 failed) | 0/" in text
    assert "3.0 s, 4.0 s |" in text
    assert "2 were run, and 1 passed" in text
    page = summary.put("a\n<!-- matrix -->\nold\n<!-- end of matrix -->\nb", "matrix", "new")
    assert page == "a\n<!-- matrix -->\n\nnew\n\n<!-- end of matrix -->\nb"
    with pytest.raises(ValueError, match="no marks of 'soak'"):
        summary.put(page, "soak", "")
