"""Closing of lips: drawn ones, and the broad smile of the demo's portrait."""

import cv2
import numpy as np

from latentsync.faces.mouth import OpeningEstimator
from recipes.embedded.lips import LipCloser, closing_map
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


def test_a_smile_closes():
    face, meter = aligned_portrait(256), OpeningEstimator()
    closed = LipCloser()(face)
    before, after = meter.openings(np.stack([face, closed]))
    meter.close()
    assert before > 0.03 and after < 0.5 * before


def test_no_face_has_no_lips():
    assert LipCloser()(np.zeros((256, 256, 3), np.uint8)) is None
