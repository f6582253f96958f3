"""The membership of many nodes on one machine: nobody is lost, and nothing grows faster than the number of nodes."""

import asyncio
import resource

import pytest

from benchmarks.membership import StoreProcesses, simulate


@pytest.fixture
def processes():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    processes = StoreProcesses()
    yield processes
    processes.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_two_hundred_nodes_join_and_notice_deaths(processes):
    figures = asyncio.run(simulate(processes, 200, idle_seconds=5))
    assert figures["until all have joined"] < 60
    for what in ("the leader's store process", "another node's store process", "one agent"):
        assert figures[f"processor time of {what}, each second"] < 0.1
    assert 11 < figures["until the leader notices a death"] < 20
    assert 11 < figures["until all others notice that the leader does not answer"] < 30
