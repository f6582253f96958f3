import random
from collections import defaultdict

import pytest

from minetorch_launch.output.merge import WINDOW, Merge


def seen(groups):
    """Readable: ``"0,2 out text"`` for each line."""
    return [
        f"{','.join(map(str, group.ranks))} {group.stream} {line}"
        for group in groups
        for line in group.text.decode().split("\n")
    ]


@pytest.fixture
def four():
    merge = Merge()
    merge.begin(range(4))
    return merge


def test_a_line_of_all_ranks_is_shown_once_and_at_once(four):
    for rank in (2, 0, 3):
        assert four.feed(rank, "out", b"ready\n", 1.0) == []
    assert seen(four.feed(1, "out", b"ready\n", 1.0)) == ["0,1,2,3 out ready"]
    assert four.deadline is None


def test_a_line_of_some_ranks_waits_a_moment(four):
    four.feed(3, "out", b"careful\n", 1.0)
    four.feed(1, "out", b"careful\n", 1.1)
    assert four.deadline == 1.0 + WINDOW
    assert four.due(1.0 + WINDOW - 0.01) == []
    assert seen(four.due(1.0 + WINDOW)) == ["1,3 out careful"]
    assert four.deadline is None
    four.feed(0, "out", b"careful\n", 2.0)
    assert seen(four.due(9.0)) == ["0 out careful"]
    assert WINDOW <= 0.2


def test_equal_lines_of_one_rank_stay_apart(four):
    four.feed(1, "out", b"x\nx\nx\n", 1.0)
    four.feed(2, "out", b"x\nx\n", 1.0)
    assert seen(four.due()) == ["1,2 out x", "1,2 out x", "1 out x"]


def test_streams_do_not_mix_and_keep_the_order_of_a_rank(four):
    four.feed(0, "out", b"same\n", 1.0)
    four.feed(0, "err", b"oops\n", 1.0)
    four.feed(0, "out", b"after\n", 1.0)
    four.feed(1, "err", b"same\n", 1.0)
    assert seen(four.due()) == ["0 out same", "0 err oops", "0 out after", "1 err same"]


def test_a_line_of_one_rank_before_a_common_line_does_not_split_it(four):
    groups = []
    for rank in range(4):
        groups += four.feed(rank, "out", b"I am %d\nready\ngo\n" % rank, 1.0)
    assert seen(groups + four.due()) == [
        "0 out I am 0",
        "1 out I am 1",
        "2 out I am 2",
        "3 out I am 3",
        "0,1,2,3 out ready",
        "0,1,2,3 out go",
    ]


def test_lines_of_some_ranks_before_a_common_line_are_merged_too(four):
    four.feed(0, "out", b"ready\n", 1.0)
    four.feed(1, "out", b"warning\nready\n", 1.0)
    four.feed(2, "out", b"warning\nready\n", 1.0)
    assert seen(four.due()) == ["1,2 out warning", "0,1,2 out ready"]


def test_a_single_blank_line_does_not_split_the_lines_that_follow(four):
    four.feed(1, "out", b"\ntitle\n\nbody\n", 1.0)
    four.feed(0, "out", b"title\n\nbody\n", 1.01)
    assert seen(four.due()) == ["1 out ", "0,1 out title", "0,1 out ", "0,1 out body"]


def test_no_line_waits_for_a_rank_that_has_ended(four):
    four.leave(3)
    for rank in (0, 1):
        assert four.feed(rank, "out", b"bye\n", 1.0) == []
    assert seen(four.feed(2, "out", b"bye\n", 1.0)) == ["0,1,2 out bye"]
    for rank in (0, 1):
        four.leave(rank)
    assert seen(four.feed(2, "out", b"late\n", 1.0)) == ["2 out late"]


def test_a_flood_passes_in_order_until_a_calm_window():
    merge = Merge()
    merge.begin([0, 1])
    shown, now = [], 1.0
    for number in range(100_000):
        now += WINDOW / 20_000
        shown += seen(merge.feed(0, "out", b"line %d\n" % number, now))
        assert number + 1 - len(shown) <= 10_000
    assert shown == [f"0 out line {number}" for number in range(100_000)]
    for _ in range(2):
        now += 1.01 * WINDOW
        shown = merge.feed(0, "out", b"calm\n", now)
    assert shown == []
    assert seen(merge.feed(0, "out", b"x" * 2_000_000 + b"\n", now)) == ["0 out calm", "0 out " + "x" * 2_000_000]


@pytest.mark.parametrize("seed", range(10))
def test_no_line_is_lost_and_the_lines_of_each_rank_stay_in_order(seed):
    chance = random.Random(seed)
    ranks = chance.sample(range(100), chance.choice([1, 2, 3, 8]))
    texts = [b"", b"a", b"b", b"c"] + [b"t%d" % number for number in range(chance.choice([0, 100]))]
    merge = Merge()
    merge.begin(ranks)
    printed, groups, now = defaultdict(list), [], 0.0
    for turn in range(300):
        rank, stream = chance.choice(ranks), chance.choice(["out", "out", "err"])
        some = chance.choices(texts, k=chance.choice([1, 3, 6, 2000 if seed == 3 else 6]))
        printed[rank] += [(stream, text) for text in some]
        groups += merge.feed(rank, stream, b"\n".join(some) + b"\n", now)
        now += chance.random() * 0.05
        groups += merge.due(now)
        assert merge.deadline is None or merge.deadline > now
        if turn == 250:
            merge.leave(ranks[-1])
            ranks = ranks[:-1] or ranks
    groups += merge.due()
    assert merge.deadline is None
    shown = defaultdict(list)
    for group in groups:
        assert list(group.ranks) == sorted(set(group.ranks))
        for rank in group.ranks:
            shown[rank] += [(group.stream, text) for text in group.text.split(b"\n")]
    assert shown == printed
