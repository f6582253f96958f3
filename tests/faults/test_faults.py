"""Some of the fault matrix, with real launches: every victim, every phase, every kind of outcome."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults import room
from tests.faults.representative import chosen
from tests.faults.trial import run_sealed

pytestmark = pytest.mark.timeout(1500)  # the first waits for all of them; 100 s on two quiet cores


@pytest.fixture(scope="module")
def verdicts():
    """Of all chosen cells, which run side by side: most of their time they wait."""
    if (reason := room.why_none()) is not None:
        pytest.skip(reason)
    baseline = run_sealed(None, None)
    assert not baseline.problems, baseline.text
    with ThreadPoolExecutor((os.cpu_count() or 1) + 2) as pool:
        found = pool.map(lambda cell: run_sealed(cell, baseline.result), chosen())
        return {verdict.cell: verdict for verdict in found}


@pytest.mark.parametrize("cell", [str(cell) for cell in chosen()])
def test_a_fault_is_survived(verdicts, cell):
    verdict = verdicts[cell]
    assert not verdict.problems, "\n".join([*verdict.problems, verdict.text])
