"""Closing of lips: drawn ones, and the broad smile of the portrait."""

import cv2
import numpy as np

from latentsync.faces import lips
from latentsync.faces.lips import LipCloser, closing_map
from latentsync.faces.mediapipe_graphs import MeshNet, Region
from latentsync.faces.mouth import OpeningEstimator
from tests.metrics.faces import aligned_portrait


def test_a_drawn_mouth_closes_and_nose_and_chin_stay():
    side, skin, teeth = 256, 90, 250
    columns = np.linspace(90, 166, 11)
    bow = 8 * np.sin(np.linspace(0, np.pi, 11))
    upper, lower = np.stack([columns, 170 - bow], 1), np.stack([columns, 170 + bow], 1)
    face = np.full((side, side, 3), skin, np.uint8)
    cv2.fillPoly(face, [np.concatenate([upper, lower[::-1]]).round().astype(np.int32)], (teeth, teeth, teeth))
    places = closing_map(upper, lower, 140, 220, side)
    closed = cv2.remap(face, places, None, cv2.INTER_LINEAR)
    assert (face == teeth).sum() > 1000 and (closed > skin + 60).sum() < 0.1 * (face == teeth).sum()
    here = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1)
    np.testing.assert_allclose(places[:140], here[:140])
    np.testing.assert_allclose(places[221:], here[221:])
    np.testing.assert_allclose(places[:, :60], here[:, :60], atol=0.05)


def test_a_smile_closes_as_far_as_asked():
    face, estimator, closer = aligned_portrait(256), OpeningEstimator(), LipCloser()
    smile = face.astype(np.float32)
    closed, half = closer(smile), closer(smile, 0.5)
    assert closed.dtype == np.float32 and closed.min() >= 0 and closed.max() <= 255
    images = np.stack([face, half.round().astype(np.uint8), closed.round().astype(np.uint8), closer(face)])
    before, partly, after, after_uint8 = estimator.openings(images)
    estimator.close()
    closer.close()
    assert before > 0.03 and 0.9 * before > partly > after and after < 0.5 * before
    assert abs(after_uint8 - after) < 0.1 * before


def test_a_closed_mouth_is_left_alone(monkeypatch):
    contour = np.stack([np.linspace(90, 166, 11), np.full(11, 170.0)], 1)
    points = np.concatenate([contour, contour + (0, 0.45), [(128, 140), (128, 220)]])
    monkeypatch.setattr(MeshNet, "points", lambda *_: points)
    monkeypatch.setattr(lips, "aligned_region", lambda *_: Region(np.zeros(2), 1.0, 0.0))
    face = aligned_portrait(256)
    assert LipCloser()(face) is face


def test_a_face_without_lips_is_left_alone():
    face = np.zeros((256, 256, 3), np.uint8)
    assert LipCloser()(face) is face
