"""Some of the fault matrix, with real launches: every victim, every phase, every kind of outcome."""

import pytest

from tests.faults import room
from tests.faults.representative import chosen
from tests.faults.trial import run_sealed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def whole():
    """What a launch without a fault comes to."""
    if (reason := room.why_none()) is not None:
        pytest.skip(reason)
    baseline = run_sealed(None, None)
    assert not baseline.problems, baseline.text
    return baseline.result


@pytest.mark.parametrize("cell", chosen(), ids=str)
def test_a_fault_is_survived(whole, cell):
    verdict = run_sealed(cell, whole)
    assert not verdict.problems, "\n".join([*verdict.problems, verdict.text])
