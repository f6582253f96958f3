import pytest

from minetorch_launch.hangs.detector import HangDetector
from minetorch_launch.heartbeat import Heartbeat, Phase


def heartbeat(beats, step=0, phase="training", *, stepped=True, **more):
    given = {
        "last_beat_at": 0.0,
        "began_at_step": 0,
        "first_step_at": 1.0 if stepped else None,
        "epoch": 1,
        "checkpoint_step": None,
    }
    return Heartbeat(beats=beats, step=step, phase=Phase[phase.upper()], **{**given, **more})


class Job:
    """Feeds a detector with heartbeats half a second apart, as the launcher does."""

    def __init__(self, hang_timeout=None):
        self.detector = HangDetector(hang_timeout)
        self.now = 1000.0
        self.beats = 0

    def live(self, seconds, *others, pause=0.5, **of_heartbeat):
        """One rank beats every ``pause`` seconds, beside ranks that do not change."""
        stall = None
        for _ in range(int(seconds / pause)):
            self.beats += 1
            stall = stall or self.stand(pause, *others, **of_heartbeat)
        return stall

    def stand(self, seconds, *others, **of_heartbeat):
        """No rank beats: the stall, as soon as there is one."""
        for _ in range(max(1, int(seconds / 0.5))):
            self.now += 0.5
            stall = self.detector.look(dict(enumerate([heartbeat(self.beats, **of_heartbeat), *others])), self.now)
            if stall:
                return stall
        return None


def test_without_a_trainer_there_is_no_stall():
    job = Job(hang_timeout=1)
    assert job.stand(50_000) is None
    assert job.detector.look({}, job.now + 1) is None


def test_the_users_limit_counts_in_every_phase_from_the_first_beat():
    for phase in ("starting", "training", "validating", "saving", "in_hook", "unknown"):
        job = Job(hang_timeout=60)
        assert job.stand(500, phase="starting", stepped=False) is None
        assert job.live(30, phase=phase, stepped=False) is None
        stall = job.stand(1000, phase=phase, stepped=False)
        assert 60 < stall.seconds <= 61
        assert (stall.limit, stall.reason) == (60, "--hang-timeout 60")


@pytest.mark.parametrize(
    ("phase", "stepped", "limit"),
    [
        ("training", True, 300),
        ("validating", True, 300),
        ("saving", True, 1800),
        ("in_hook", True, 1800),
        ("unknown", True, 1800),
        ("starting", True, 1800),
        ("training", False, 1800),
    ],
)
def test_the_derived_limit_goes_by_the_phase(phase, stepped, limit):
    job = Job()
    assert job.live(20, phase=phase, stepped=stepped) is None
    assert job.stand(limit - 1, phase=phase, stepped=stepped) is None
    stall = job.stand(2, phase=phase, stepped=stepped)
    assert stall.limit == limit
    assert f"{limit:,} s " in stall.reason


def test_ten_times_the_longest_pause_is_allowed():
    job = Job()
    assert job.live(600, pause=100.0) is None
    assert job.live(50) is None
    assert job.stand(998) is None
    stall = job.stand(10)
    assert stall.limit == pytest.approx(1000, abs=1)
    assert stall.reason == "10 times the longest pause so far, 100 s"


def test_one_rank_that_beats_keeps_all_alive():
    assert Job(hang_timeout=10).live(100, heartbeat(5), heartbeat(9)) is None


def test_the_most_lenient_rank_counts():
    job = Job()
    assert job.live(10, heartbeat(5, phase="saving")) is None
    assert job.stand(1790, heartbeat(5, phase="saving")) is None
    assert job.stand(20, heartbeat(5, phase="saving")).reason == "1,800 s while saving"


def test_ranks_whose_training_is_over_are_not_waited_for():
    job = Job(hang_timeout=10)
    job.live(5, phase="training")
    assert job.stand(100, heartbeat(5, phase="done"), phase="done") is None
    job = Job(hang_timeout=10)
    assert job.live(50, heartbeat(5, phase="done")) is None
    assert job.stand(20, heartbeat(5, phase="done")).seconds > 10


def test_only_time_that_the_launcher_looked_on_counts():
    job = Job(hang_timeout=60)
    job.live(10)
    assert job.stand(30) is None
    job.now += 100_000  # Ctrl-Z, or a laptop's lid
    assert job.stand(20) is None
    assert 60 < job.stand(20).seconds <= 61


def test_a_pause_of_the_launcher_is_no_gap_of_the_workers():
    job = Job()
    job.live(10)
    job.now += 100_000
    job.live(10)
    assert job.stand(400).limit == 300


def test_a_stall_says_where_all_stood():
    job = Job(hang_timeout=10)
    job.live(5, heartbeat(3, 4211, epoch=3), step=4200)
    line = job.stand(30, heartbeat(3, 4211, epoch=3), step=4200).line()
    assert line == "no step for 10 s (last: step 4,211, epoch 3; limit: --hang-timeout 10)"
    job = Job(hang_timeout=10)
    job.live(5, stepped=False)
    assert job.stand(30, stepped=False).line().startswith("no heartbeat for 10 s, before the first step")


def test_a_timeout_without_any_heartbeat_is_warned_about_once():
    job = Job(hang_timeout=5)
    assert job.stand(50) is None
    assert job.detector.missing_heartbeats() is None
    assert job.stand(20) is None
    assert job.detector.missing_heartbeats().startswith("--hang-timeout 5 has no effect so far: ")
    assert job.detector.missing_heartbeats() is None


def test_nothing_is_missing_without_a_timeout_or_once_a_worker_has_beaten():
    job = Job()
    job.stand(5000)
    assert job.detector.missing_heartbeats() is None
    job = Job(hang_timeout=60)
    job.live(10)
    job.stand(100)
    assert job.detector.missing_heartbeats() is None
