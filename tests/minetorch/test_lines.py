"""The lines between ranks: who is let in, who is not, and that nobody holds the others up."""

import contextlib
import socket
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minetorch import CollectiveError, lines
from minetorch.lines import _HELLO, Lines, _pick_up

TOKEN = bytes(range(32))


@pytest.fixture
def port():
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def call(*said):
            line = stack.enter_context(socket.create_connection(server.getsockname()))
            for part in said:
                line.sendall(part)
            return line

        yield server, call


def test_strangers_are_neither_let_in_nor_waited_for(port):
    server, call = port
    silent = call()
    halfway = call(TOKEN[:20])
    guesser = call(_HELLO.pack(bytes(32), 1))
    gone = call(TOKEN)
    gone.close()
    ranks = {rank: call(_HELLO.pack(TOKEN, rank)) for rank in (2, 1)}
    began = time.monotonic()
    found = _pick_up(server, 2, TOKEN)
    assert time.monotonic() - began < 5
    assert sorted(found) == [1, 2]
    for rank, line in found.items():
        assert line.getpeername() == ranks[rank].getsockname()
        line.close()
    for stranger in (silent, halfway, guesser):
        stranger.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b""


def test_a_hello_may_come_in_pieces(port):
    server, call = port
    hello = _HELLO.pack(TOKEN, 1)
    line = call(hello[:5])

    def say_the_rest():
        for byte in hello[5:]:
            time.sleep(0.001)
            line.sendall(bytes([byte]))

    speaking = threading.Thread(target=say_the_rest)
    speaking.start()
    (mine,) = _pick_up(server, 1, TOKEN).values()
    speaking.join()
    line.sendall(b"words\n")
    assert mine.recv(100) == b"words\n"
    mine.close()


def test_a_rank_whose_call_is_lost_is_an_error(port, monkeypatch):
    monkeypatch.setattr(lines, "HELLO_S", 0.2)
    server, call = port
    call()
    with pytest.raises(CollectiveError, match="1 of 1 ranks did not come through to rank 0"):
        _pick_up(server, 1, TOKEN)


words = st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(), st.none()), max_size=3)


@settings(deadline=None)
@given(st.lists(words, max_size=20), st.lists(st.integers(1, 50), min_size=1, max_size=10))
def test_words_come_whole_and_in_order_however_they_are_cut(said, cuts):
    theirs, ours = socket.socketpair()
    heard, ended = [], threading.Event()
    listener = Lines({3: ours})
    listener.listen(lambda rank, word: heard.append((rank, word)), lambda rank: ended.set())
    speaker, relay = socket.socketpair()
    other = Lines({0: speaker})
    for word in said:
        other.tell(0, word)
    other.close()
    data = b""
    while more := relay.recv(1 << 16):
        data += more
    relay.close()
    at = number = 0
    while at < len(data):
        size = cuts[number % len(cuts)]
        theirs.sendall(data[at : at + size])
        at, number = at + size, number + 1
    theirs.close()
    assert ended.wait(10)
    listener.close()
    assert heard == [(3, word) for word in said]
