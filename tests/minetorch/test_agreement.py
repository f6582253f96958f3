"""That ranks agree on one step, whatever the order in which their words and their steps come."""

import random
from collections import deque

import pytest

from minetorch.agreement import NOTHING, Convener, Member


class World:
    """Ranks that train in lockstep but for `slack` steps, and words on their way between them, each line in order."""

    def __init__(self, size, slack, epoch, draw):
        self.members = [Member() for _ in range(size)]
        self.convener = Convener(size)
        self.lines = {(a, b): deque() for a in range(size) for b in range(size)}
        self.steps = [0] * size
        self.done = [[] for _ in range(size)]
        self.waits = [False] * size
        self.meeting = {}
        self.slack, self.epoch, self.draw = slack, epoch, draw

    def ask(self, rank, kind):
        if self.members[rank].ask(kind):
            self.lines[rank, 0].append(("convene", None))

    def hear(self, start, end):
        say, what = self.lines[start, end].popleft()
        if say == "convene":
            if self.convener.convene():
                for rank in range(len(self.members)):
                    self.lines[0, rank].append(("round", self.convener.round))
        elif say == "round":
            self.lines[end, 0].append(("answer", self.members[end].answer(what)))
        elif say == "answer":
            decision = self.convener.take(start, what)
            if decision is not None:
                for rank in range(len(self.members)):
                    self.lines[0, rank].append(("decision", decision))
        else:
            self.members[end].decided(what)

    def can_move(self, rank):
        if rank in self.meeting:
            return False
        if self.waits[rank]:
            return not self.members[rank].must_wait
        return self.steps[rank] - min(self.steps) < self.slack or self.at_meeting(rank)

    def at_meeting(self, rank):
        return self.steps[rank] % self.epoch == 0 and self.steps[rank] > 0 and not self.met[rank]

    def move(self, rank):
        """A step, or what comes after it, or the coming to a meeting."""
        member = self.members[rank]
        if not self.waits[rank]:
            if self.at_meeting(rank):
                if rank == 0 and self.convener.is_open:
                    return
                self.meeting[rank] = frozenset(member.asked), self.convener.round if rank == 0 else 0
                if len(self.meeting) == len(self.members):
                    self.meet()
                return
            self.steps[rank] += 1
            self.met[rank] = False
            if not member.stepped():
                return
            self.waits[rank] = member.must_wait
            if self.waits[rank]:
                return
        self.waits[rank] = False
        kinds = member.take()
        if kinds:
            self.done[rank].append((self.steps[rank], "step", kinds))
        self.ask_again(rank)

    def meet(self):
        assert len(set(self.steps)) == 1
        kinds = NOTHING.union(*(asked for asked, _ in self.meeting.values()))
        for rank, member in enumerate(self.members):
            member.met(self.meeting[0][1], kinds)
            self.met[rank] = True
            if kinds:
                self.done[rank].append((self.steps[rank], "meeting", kinds))
            self.ask_again(rank)
        self.meeting = {}

    def ask_again(self, rank):
        if self.members[rank].asked:
            self.lines[rank, 0].append(("convene", None))

    def run(self, steps, asks):
        self.met = [False] * len(self.members)
        pending = sorted(asks, key=lambda ask: ask[1])
        while min(self.steps) < steps:
            for ask in [ask for ask in pending if self.steps[ask[0]] >= ask[1]]:
                pending.remove(ask)
                self.ask(ask[0], ask[2])
            moves = [(self.move, (rank,)) for rank in range(len(self.members)) if self.can_move(rank)]
            moves += [(self.hear, line) for line, words in self.lines.items() if words]
            assert moves, "a deadlock"
            act, arguments = self.draw.choice(moves)
            act(*arguments)


@pytest.mark.parametrize("slack", [1, 6])
@pytest.mark.parametrize("size", [2, 4])
def test_all_do_the_same_after_the_same_steps(size, slack):
    """500 random interleavings a case, with requests of any rank at any time, also while ranks meet."""
    for seed in range(500):
        draw = random.Random(seed)
        world = World(size, slack, draw.randint(3, 12), draw)
        kinds = ("save", "stop_after_epoch", "save_and_stop", "hear")
        asks = [(draw.randrange(size), draw.randrange(20), draw.choice(kinds)) for _ in range(draw.randint(1, 6))]
        world.run(60, asks)
        shared = min(map(len, world.done))
        assert all(done[:shared] == world.done[0][:shared] for done in world.done)
        assert {kind for _, _, kinds in world.done[0] for kind in kinds} == {kind for _, _, kind in asks}
        assert not any(member.asked for member in world.members)


def test_a_step_costs_nothing_until_something_is_asked_for():
    member = Member()
    assert not any(member.stepped() for _ in range(1000))
    member.ask("save")
    assert not member.stepped()
    assert member.answer(1).limit == 1002
    assert member.stepped()
    assert member.must_wait
