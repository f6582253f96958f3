"""What the agents of a round tell each other through a store that may go."""

import json

import pytest
from minetorch_launch.engine.council import Council, Member, StoreLostError
from torch.distributed import HashStore


class OnceSilent:
    """A store whose host was stopped for a while: one question times out, and its answer comes to the next."""

    def __init__(self):
        self._store, self.asked, self.is_silent = HashStore(), 0, False

    def __getattr__(self, name):
        def ask(*arguments):
            self.asked += 1
            if self.is_silent:
                raise RuntimeError("wait timeout after 24000ms")
            return getattr(self._store, name)(*arguments)

        return ask


def member(number):
    return Member((number,), f"node{number}", "127.0.0.1", 100 + number, 0, number == 0, 0, 0, "launch")


def test_a_store_that_failed_to_answer_once_is_not_asked_again():
    store = OnceSilent()
    council = Council(store, 1, (member(0), member(1)))
    council.post("stop", signum=15)
    assert json.loads(store._store.get("news/1"))["kind"] == "stop"
    store.is_silent = True
    with pytest.raises(StoreLostError, match="timeout"):
        council.post("stop", signum=15)
    assert council.store_is_lost
    store.is_silent, asked = False, store.asked
    for use in (
        lambda: council.post("stop"),
        lambda: council.put("evidence", 1),
        lambda: council.mark("parted"),
        lambda: council.all_marked("parted"),
        lambda: council.agree("verdict", lambda: 1, 1, lambda: None),
    ):
        with pytest.raises(StoreLostError):
            use()
    assert store.asked == asked
