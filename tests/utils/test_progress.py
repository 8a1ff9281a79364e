"""The time left follows measured speeds and never jumps."""

import pytest

from latentsync.pipelines.progress import Work
from latentsync.utils.progress import SETTLING_SECONDS, Countdown, SteadyPace, duration


class Clock:
    """A clock that advances on request."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_counts_down_by_itself():
    clock = Clock()
    countdown = Countdown(clock)
    assert countdown.left is None and countdown.fraction == 0
    countdown.update(60)
    clock.now += 20
    assert countdown.left == pytest.approx(40) and countdown.fraction == pytest.approx(20 / 60)
    clock.now += 100
    assert countdown.left == 0 and countdown.fraction < 1


def test_later_estimates_are_followed_gradually():
    clock = Clock()
    countdown = Countdown(clock)
    countdown.update(600)
    clock.now += SETTLING_SECONDS + 1
    for estimate, seconds in ((3000, 40), (3000, 40), (20, 40), (20, 0.1)):
        clock.now += seconds
        before = countdown.left
        countdown.update(estimate)
        assert 0.75 * before <= countdown.left <= 1.25 * before
        assert (countdown.left - before) * (estimate - before) > 0  # toward the estimate


# Seconds: start of the decoders, reading, encoding, a step, decoding (all of a chunk), writing (of a frame).
RUNS = {
    "a large model on a processor": dict(start=9, read=1, encode=20, step=8, decode=30, write=0.05),
    "a large model on a GPU": dict(start=3, read=0.1, encode=0.3, step=0.2, decode=0.5, write=0.02),
    "upscaling takes most of it": dict(start=2, read=0.2, encode=1, step=1, decode=60, write=0.05),
    "interpolation takes most of it": dict(start=2, read=0.2, encode=1, step=0.5, decode=1, write=3.0),
}


def simulate(total: int, steps: int, speeds: dict, known: dict | None = None) -> tuple[list[tuple], float]:
    """(time, time left, fraction) at each report of a run in chunks of 16 frames, and when it ended."""
    clock, updates = Clock(), []
    work = Work(total, steps, 16, {} if known is None else known, clock)
    countdown = Countdown(clock)
    queue: list[float] = []  # frames that wait to be written: the time at which each is done

    def write() -> None:
        while queue and queue[0] <= clock.now:
            work.write(speeds["write"])
            queue.pop(0)

    def report() -> None:
        write()
        if (estimate := work.seconds_left()) is not None:
            countdown.update(estimate)
        updates.append((clock.now, countdown.left, countdown.fraction))

    clock.now += speeds["start"]
    for first in range(0, total, 16):
        frames = min(16, total - first)
        clock.now += speeds["read"]
        work.begin(frames)
        clock.now += speeds["encode"]
        for _ in range(steps):
            clock.now += speeds["step"]
            work.step(frames)
            report()
        clock.now += speeds["decode"]
        for _ in range(frames):
            if len(queue) >= 16:  # the writer is behind
                clock.now = max(clock.now, queue[0])
            write()
            queue.append(max([clock.now, *queue[-1:]]) + speeds["write"])
            work.deliver()
            report()
    while queue:
        clock.now = queue[0]
        report()
    work.remember()
    return updates, clock.now


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("steps", [1, 20])
def test_the_time_left_never_jumps_and_is_right_before_long(name, steps):
    updates, end = simulate(160, steps, RUNS[name])
    shown = [(time, left) for time, left, _ in updates if left is not None]
    first = shown[0][0]
    for (earlier, before), (later, after) in zip(shown, shown[1:], strict=False):
        expected = max(0.0, before - (later - earlier))
        if earlier - first > SETTLING_SECONDS:
            assert abs(after - expected) <= max(0.25 * expected, 1.0), (later, expected, after)
    half = [left / (end - time) for time, left in shown if 0.5 < (time - 100) / (end - 100) < 0.8]
    assert all(0.7 < ratio < 1.4 for ratio in half), half
    fractions = [fraction for *_, fraction in updates]
    assert fractions == sorted(fractions) and fractions[-1] > 0.9


def test_a_second_run_knows_the_speeds_of_the_first():
    speeds, known = RUNS["upscaling takes most of it"], {}
    simulate(160, 20, speeds, known)
    updates, end = simulate(160, 20, speeds, known)
    time, left, _ = updates[0]
    assert left == pytest.approx(end - time, rel=0.15)


def test_frames_without_faces_cost_nothing():
    clock = Clock()
    work = Work(100, 1, 16, {}, clock)
    for _ in range(2):
        clock.now += 1
        work.begin(16)
        clock.now += 8
        work.step(16)
        for _ in range(32):  # every other chunk has no face
            work.deliver()
    assert work.seconds_left() == pytest.approx((100 - 64) / 2 * 9 / 16, rel=0.1)


def test_frames_before_the_first_face_tell_nothing_about_the_rest():
    clock = Clock()
    work = Work(100, 1, 16, {}, clock)
    for _ in range(10):
        work.deliver()
    work.begin(16)
    clock.now += 8
    work.step(16)
    work.deliver()
    assert work.seconds_left() == pytest.approx((100 - 26) / 16 * 8)


def test_interpolation_is_measured_before_it_is_estimated():
    """It may take most of the time, and the first frames are written before it begins."""
    work = Work(50, 1, 16, {}, Clock(), interpolates=True)
    work.begin(16)
    work.step(16)
    for _ in range(8):
        work.deliver()
    for seconds in (0, 0, 2, 2):
        assert work.seconds_left() is None
        work.write(seconds)
    assert work.seconds_left() > 50
    again = Work(50, 1, 16, {"first": 0.1, "last": 0.1, "write": 2}, Clock(), interpolates=True)
    assert again.seconds_left() > 20  # of the last run


def test_equal_pieces_have_a_steady_pace():
    clock = Clock()
    pace = SteadyPace("interpolation", 10, clock)
    assert pace.at(0).seconds_left is None
    clock.now += 2
    assert pace.at(1).seconds_left == pytest.approx(18)
    clock.now += 2
    updates = pace.at(2)
    assert (updates.stage, updates.done, updates.total) == ("interpolation", 2, 10)
    assert updates.fraction == pytest.approx(0.2, abs=0.02)


def test_durations_in_words():
    assert (duration(0.2), duration(75), duration(3700)) == ("1 s", "1 min 15 s", "1 h 1 min")
