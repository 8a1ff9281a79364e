"""Tracks of boxes, and the crops around them."""

import numpy as np
import pytest

from latentsync.metrics.face_tracks import FaceTrack, crop_faces, find_tracks, track_of


def box(x: float, y: float = 50, side: float = 120) -> np.ndarray:
    return np.array([x, y, x + side, y + side])


def test_two_people_are_two_tracks_and_the_longest_comes_first():
    detections = [[box(10 + i), box(400)] if i < 80 else [box(10 + i)] for i in range(100)]
    tracks = find_tracks(detections)
    assert [(track.start, len(track.boxes)) for track in tracks] == [(0, 100), (0, 80)]
    assert tracks[0].boxes[50, 0] == 60


def test_the_track_of_a_person_found_by_another_detector():
    long, short = find_tracks([[box(10), box(400)] if i < 80 else [box(10)] for i in range(100)])
    assert track_of([long, short], {i: box(420, 60, 100) for i in range(60, 100)}) is short
    assert track_of([long, short], {i: box(0) for i in range(90, 120)}) is long
    assert track_of([long, short], {5: box(800)}) is None and track_of([], {5: box(0)}) is None


def test_short_gaps_are_filled_jumps_and_long_gaps_end_a_track():
    gap = find_tracks([[] if 30 <= i < 40 else [box(i)] for i in range(70)])
    assert len(gap) == 1 and gap[0].boxes[35, 0] == pytest.approx(35)
    jump = find_tracks([[box(10)] if i < 60 else [box(500)] for i in range(120)])
    assert [(track.start, track.end) for track in jump] == [(0, 60), (60, 120)]
    assert len(find_tracks([[] if 55 <= i < 85 else [box(10)] for i in range(140)])) == 2


def test_short_tracks_and_small_faces_do_not_count():
    assert find_tracks([[box(10)]] * 49) == []
    assert find_tracks([[box(10, side=90)]] * 60) == []
    assert len(find_tracks([[box(10)]] * 50)) == 1


def test_the_crop_is_gray_outside_the_frame():
    frame = np.zeros((200, 200, 3), np.uint8)
    frame[0:100, 0:100] = (255, 0, 0)
    track = FaceTrack(0, np.tile([0.0, 0.0, 100.0, 100.0], (15, 1)))
    crops = list(crop_faces([frame] * 15, track))
    assert [crop.shape for crop in crops] == [(224, 224, 3)] * 15
    middle = crops[7]
    # half = 50: x from -20 to 120, y from 0 to 140, so 100 pixels of face begin at 20 / 140 of the width
    assert (middle[80, :28] == 110).all() and (middle[80, 40:180] == (255, 0, 0)).all()
    assert (middle[180:, 40:] == 0).all()
