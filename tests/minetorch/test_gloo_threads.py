"""Gloo's threads are waited for as long as they have something to do."""

import ctypes
import threading
import time

import pytest

from minetorch.distributed import gloo_threads as gloo


@pytest.fixture
def thread():
    """A thread with the name of gloo's, which works until `idle` is set, and ends with the test."""
    named, idle, over = threading.Event(), threading.Event(), threading.Event()

    def work():
        ctypes.CDLL(None).prctl(15, b"pt_gloo_runloop", 0, 0, 0)  # PR_SET_NAME
        named.set()
        while not idle.is_set():
            pass
        over.wait()

    worker = threading.Thread(target=work)
    worker.start()
    named.wait()
    yield idle
    idle.set()
    over.set()
    worker.join()
    while gloo._states():  # Python lets go of a thread a moment before the kernel does
        time.sleep(0.001)


def seconds():
    began = time.monotonic()
    gloo.let_threads_finish()
    return time.monotonic() - began


def test_without_such_threads_nothing_is_waited_for():
    assert gloo._states() == ""
    assert min(seconds() for _ in range(5)) < gloo._LOOK_SECONDS


def test_a_thread_at_work_is_waited_for(thread):
    threading.Timer(0.3, thread.set).start()
    assert seconds() > 0.25
    assert gloo._states() == "S"


def test_but_not_for_ever(thread, monkeypatch):
    monkeypatch.setattr(gloo, "_MOST_SECONDS", 0.2)
    assert 0.2 < seconds() < 5
