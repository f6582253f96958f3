import random
from collections import defaultdict

import pytest

from minetorch_launch.console import collapse
from minetorch_launch.console.collapse import WINDOW, Collapse


def seen(groups):
    """Readable: ``"0,2 out text"`` for each line."""
    return [
        f"{','.join(map(str, group.ranks))} {group.stream} {line}"
        for group in groups
        for line in group.text.decode().split("\n")
    ]


@pytest.fixture
def four():
    lines = Collapse()
    lines.expect(range(4))
    return lines


def test_a_line_of_all_ranks_is_shown_once_and_at_once(four):
    for rank in (2, 0, 3):
        assert four.feed(rank, "out", b"ready\n", 1.0) == []
    assert seen(four.feed(1, "out", b"ready\n", 1.0)) == ["0,1,2,3 out ready"]
    assert four.deadline is None


def test_a_line_of_some_waits_a_moment_and_no_longer(four):
    four.feed(3, "out", b"careful\n", 1.0)
    four.feed(1, "out", b"careful\n", 1.1)
    assert four.deadline == 1.0 + WINDOW
    assert four.due(1.0 + WINDOW - 0.01) == []
    assert seen(four.due(1.0 + WINDOW)) == ["1,3 out careful"]
    assert four.deadline is None
    four.feed(0, "out", b"careful\n", 2.0)
    assert seen(four.due(9.0)) == ["0 out careful"]
    assert WINDOW <= 0.2


def test_lines_of_one_rank_are_not_collapsed(four):
    four.feed(1, "out", b"x\nx\nx\n", 1.0)
    four.feed(2, "out", b"x\nx\n", 1.0)
    assert seen(four.flush()) == ["1,2 out x", "1,2 out x", "1 out x"]


def test_streams_do_not_mix_but_keep_a_ranks_order(four):
    four.feed(0, "out", b"same\n", 1.0)
    four.feed(0, "err", b"oops\n", 1.0)
    four.feed(0, "out", b"after\n", 1.0)
    four.feed(1, "err", b"same\n", 1.0)
    assert seen(four.flush()) == ["0 out same", "0 err oops", "0 out after", "1 err same"]


def test_a_line_of_ones_own_before_a_common_one_does_not_part_it(four):
    groups = [four.feed(rank, "out", b"I am %d\nready\ngo\n" % rank, 1.0) for rank in range(4)]
    assert seen(groups[-1]) == [
        "0 out I am 0",
        "1 out I am 1",
        "2 out I am 2",
        "3 out I am 3",
        "0,1,2,3 out ready",
        "0,1,2,3 out go",
    ]


def test_what_some_print_before_a_common_line_is_collapsed_too(four):
    four.feed(0, "out", b"ready\n", 1.0)
    four.feed(1, "out", b"warning\nready\n", 1.0)
    four.feed(2, "out", b"warning\nready\n", 1.0)
    assert seen(four.flush()) == ["1,2 out warning", "0,1,2 out ready"]


def test_an_odd_blank_line_does_not_put_the_rest_out_of_step(four):
    four.feed(1, "out", b"\ntitle\n\nbody\n", 1.0)
    four.feed(0, "out", b"title\n\nbody\n", 1.0)
    assert seen(four.flush()) == ["1 out ", "0,1 out title", "0,1 out ", "0,1 out body"]


def test_no_line_waits_for_a_rank_that_is_gone(four):
    four.leave(3)
    for rank in (0, 1):
        assert four.feed(rank, "out", b"bye\n", 1.0) == []
    assert seen(four.feed(2, "out", b"bye\n", 1.0)) == ["0,1,2 out bye"]
    for rank in (0, 1, 2):
        four.leave(rank)
    assert seen(four.feed(3, "out", b"late\n", 1.0)) == ["3 out late"]


def test_who_waits_for_nobody_is_idle(four):
    assert not four.is_idle
    assert not Collapse().is_idle  # nobody said how many there are
    four.expect([7])
    assert four.is_idle
    four.feed(7, "out", b"x\n", 1.0)
    assert four.is_idle


def test_ranks_need_not_begin_at_zero():
    lines = Collapse()
    lines.expect([12, 9])
    lines.feed(12, "out", b"x\n", 1.0)
    assert seen(lines.feed(9, "out", b"x\n", 1.0)) == ["9,12 out x"]


def test_a_flood_passes_by_in_order_and_with_the_next_window_all_is_as_before(four, monkeypatch):
    monkeypatch.setattr(collapse, "_MOST_LINES", 100)
    shown = []
    for number in range(1000):
        shown += seen(four.feed(0, "out", b"line %d\n" % number, 1.0))
        assert number + 1 - len(shown) <= 100
    assert shown == [f"0 out line {number}" for number in range(1000)]
    monkeypatch.setattr(collapse, "_MOST_BYTES", 1000)
    later = 1.01 + WINDOW
    assert four.feed(0, "out", b"calm\n", later) == []
    assert seen(four.feed(0, "out", b"x" * 2000 + b"\n", later)) == ["0 out calm", "0 out " + "x" * 2000]


@pytest.mark.parametrize("seed", range(10))
def test_whatever_comes_no_line_is_lost_and_each_ranks_stay_in_order(seed, monkeypatch):
    chance = random.Random(seed)
    ranks = chance.sample(range(100), chance.choice([2, 3, 8]))
    monkeypatch.setattr(collapse, "_MOST_LINES", chance.choice([10, 10_000]))
    texts = [b"", b"a", b"b", b"c"] + [b"t%d" % number for number in range(chance.choice([0, 100]))]
    lines = Collapse()
    if chance.random() < 0.8:
        lines.expect(ranks)
    printed, groups, now = defaultdict(list), [], 0.0
    for _ in range(300):
        rank, stream = chance.choice(ranks), chance.choice(["out", "out", "err"])
        some = chance.choices(texts, k=chance.randint(1, 6))
        printed[rank] += [(stream, text) for text in some]
        groups += lines.feed(rank, stream, b"\n".join(some) + b"\n", now)
        now += chance.random() * 0.05
        groups += lines.due(now)
        assert lines.deadline is None or lines.deadline > now
    groups += lines.flush()
    shown = defaultdict(list)
    for group in groups:
        assert list(group.ranks) == sorted(set(group.ranks))
        for rank in group.ranks:
            shown[rank] += [(group.stream, text) for text in group.text.split(b"\n")]
    assert shown == printed
    assert not lines._holders
    assert lines._lines == 0
    assert not any(queue.lines or queue.again for queue in lines._queues.values())
