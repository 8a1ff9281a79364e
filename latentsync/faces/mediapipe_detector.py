"""The default face detector: MediaPipe's detection and mesh networks, on the CPU, without downloads.

Within a clip, each face is tracked by running the mesh network on the region of the previous mesh (about 2 ms per
face). The detection networks run when there is no tracked face, when one is lost or looks different at once, and every
`CHECK_INTERVAL` frames to find new faces and to drop regions that no longer contain a face. After a face is lost, they
run every second frame for a while, so that it is found again as soon as it is visible.

Faces are found at any roll. The detection networks report upside-down faces with low scores and often as upright, so
hits with a low score are searched again in the image turned by 180 degrees. A mesh that contradicts the direction of
its detection is rejected.
"""

from dataclasses import replace

import cv2
import numpy as np

from latentsync.faces.detector import Face, check_image, is_plausible, overlap
from latentsync.faces.mediapipe_graphs import REGION_SCALE, BoxDetection, BoxNet, MeshNet, Region, crop_to_image

FACE_OVAL = [10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377]
FACE_OVAL += [152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109]
EYE_CORNERS = [33, 263]  # outer corners, image left and image right
NOSE_TIP = 4

# Anchors. In the template of `latentsync.faces.align`, the nose lies 20/41 of the brow distance below the brow line.
# These points match that on average: 0.487, with a standard deviation of 0.039 between speakers, over 320 frames of
# the 19 frontal GRID speakers, weighted equally. The framing is that of the plain brow centers and nose (tip, wings,
# bridge; their ratio is 0.70), which aligns nose and chin with the mask:
#   brows: the four outer points of the lower brow edge; their mean is the middle of the brow, 20.6 template units from
#          the center line (20.5 in the template).
#   nose:  lower bridge (197), upper ends of both wings (198, 420) and tip (4). The weight of the bridge is solved for
#          the ratio; the other three are weighted equally.
LEFT_BROW = [46, 53, 52, 65]
RIGHT_BROW = [276, 283, 282, 295]
BRIDGE, WINGS = 197, [198, 420]
BRIDGE_WEIGHT = 0.284

POINTS = FACE_OVAL + EYE_CORNERS + LEFT_BROW + RIGHT_BROW + [BRIDGE, *WINGS, NOSE_TIP]
_POSITION = {index: position for position, index in enumerate(POINTS)}

MAX_FACES = 8
MIN_SIDE = 12.0  # image pixels; the mesh is unreliable on smaller faces
CHECK_INTERVAL = 15  # frames between detections in the full image
LOST_CHECK_INTERVAL = 2  # the same, for `LOST_FRAMES` frames after a face was lost
LOST_FRAMES = 50
SURE_SCORE = 0.85  # hits below this may be upside-down faces; upright ones mostly score above 0.9
MIN_AGREEMENT = 0.5  # minimum cosine between the up directions of detection and mesh
SAME_FACE_OVERLAP = 0.3  # minimum IoU of two boxes of the same face
LOOK_SIDES = (48, 16)  # pixels, of a region that is sampled, and then reduced
MIN_LIKENESS = 0.5  # correlation of a region with itself a frame earlier; below, the image has changed at once
KEEP_SCORE = 0.3  # a tracked face is dropped only if its detection score is below this
TILE_SIDE = 360  # pixels; larger images are also searched in overlapping tiles
TILE_SHARE = 0.6  # tile side relative to the image side, two tiles per dimension
TILE_INTERVAL = 10  # frames between tiled searches while no face is found


def _take(points: np.ndarray, indices: list[int]) -> np.ndarray:
    return points[[_POSITION[index] for index in indices]]


def anchors_from_mesh(points: np.ndarray) -> np.ndarray:
    """Anchors (3, 2) from the mesh points listed in `POINTS`, of shape (len(POINTS), 2)."""
    others = _take(points, [*WINGS, NOSE_TIP]).mean(axis=0)
    nose = BRIDGE_WEIGHT * _take(points, [BRIDGE])[0] + (1 - BRIDGE_WEIGHT) * others
    return np.stack([_take(points, LEFT_BROW).mean(axis=0), _take(points, RIGHT_BROW).mean(axis=0), nose])


def region_from_mesh(points: np.ndarray) -> Region:
    """Region of interest for the next frame: square around face oval and nose, rotated with the eye line."""
    left, right = _take(points, EYE_CORNERS)
    angle = float(np.arctan2(right[1] - left[1], right[0] - left[0]))
    cos, sin = np.cos(angle), np.sin(angle)
    axes = np.array([[cos, sin], [-sin, cos]])
    upright = _take(points, [*FACE_OVAL, NOSE_TIP]) @ axes.T
    low, high = upright.min(axis=0), upright.max(axis=0)
    return Region(axes.T @ ((low + high) / 2), float((high - low).max()) * REGION_SCALE, angle)


def face_from_mesh(points: np.ndarray, score: float) -> Face:
    """Face with the axis-aligned box of the face oval."""
    oval = _take(points, FACE_OVAL)
    return Face(np.concatenate([oval.min(axis=0), oval.max(axis=0)]), anchors_from_mesh(points), score, oval)


class MediaPipeDetector:
    """Face detector with temporal tracking. See `latentsync.faces.detector.FaceDetector`.

    Args:
        static: detect faces in each image independently instead of tracking them.
    """

    def __init__(self, static: bool = False) -> None:
        self.static = static
        self._mesh = MeshNet()
        self._short_range = BoxNet(full_range=False)
        self._verifier = BoxNet(full_range=False, min_score=KEEP_SCORE)
        self._full_range = BoxNet(full_range=True)
        self.reset()

    def reset(self) -> None:
        self._tracked: list[tuple[Face, Region]] = []
        self._looks: list[np.ndarray] = []  # of the tracked regions
        self._since_check = 0
        self._since_loss = LOST_FRAMES
        self._since_tiles = TILE_INTERVAL

    def close(self) -> None:
        for net in (self._mesh, self._short_range, self._verifier, self._full_range):
            net.close()

    def detect(self, image: np.ndarray) -> list[Face]:
        check_image(image)
        if self.static:
            self.reset()
        tracked = [self._track(image, face, region) for face, region in self._tracked]
        faces = _without_duplicates([item for item in tracked if item is not None])
        self._since_check += 1
        self._since_loss += 1
        interval = LOST_CHECK_INTERVAL if self._since_loss < LOST_FRAMES else CHECK_INTERVAL
        if (
            len(faces) < len(self._tracked)
            or not faces
            or self._since_check >= interval
            or any(
                look @ _look(image, region) < MIN_LIKENESS
                for look, (_, region) in zip(self._looks, self._tracked, strict=True)
            )
        ):
            faces = self._redetect(image, faces)
            self._since_check = 0
        if len(faces) < len(self._tracked):
            self._since_loss = 0
        elif len(faces) > len(self._tracked):
            self._since_loss = LOST_FRAMES
        self._tracked = faces
        self._looks = [_look(image, region) for _, region in faces]
        return [face for face, _ in faces]

    def _track(self, image: np.ndarray, face: Face, region: Region) -> tuple[Face, Region] | None:
        """Locate a tracked face in the next frame; None if it is lost or the mesh jumped elsewhere."""
        found = self._fit_mesh(image, region, face.score)
        if found is None:
            return None
        step = np.linalg.norm(found[0].center - face.center) / face.size.max()
        growth = found[1].side / region.side
        return found if step < 0.5 and 0.6 < growth < 1.6 else None

    def _fit_mesh(self, image: np.ndarray, region: Region, score: float) -> tuple[Face, Region] | None:
        points = self._mesh.points(image, region, POINTS)
        if points is None:
            return None
        face = face_from_mesh(points, score)
        height, width = image.shape[:2]
        inside = (0 <= face.center).all() and (face.center <= (width, height)).all()
        if not inside or face.size.max() < MIN_SIDE or not is_plausible(face):
            return None
        return face, region_from_mesh(points)

    def _redetect(self, image: np.ndarray, tracked: list[tuple[Face, Region]]) -> list[tuple[Face, Region]]:
        """Tracked faces that are confirmed by detection, with updated scores, followed by new faces."""
        detected = self._search(image, use_tiles=not tracked)
        kept = []
        for face, region in tracked:
            match = max(detected, key=lambda item: overlap(item[0].box, face.box), default=None)
            if match is not None and overlap(match[0].box, face.box) >= SAME_FACE_OVERLAP:
                if _agreement(match[0].up, face.up) < MIN_AGREEMENT:
                    continue  # the new detection replaces it
                kept.append((replace(face, score=match[0].score), region))
            elif self._is_confirmed(image, face, self._verifier):
                kept.append((face, region))
        return _without_duplicates(kept + detected)[:MAX_FACES]

    def _is_confirmed(self, image: np.ndarray, face: Face, net: BoxNet) -> bool:
        """Whether `net` also detects the face in a crop around it."""
        x0, y0, x1, y1 = _clipped_square(face.box, 2.0, image.shape)
        hits = net.detect(image[y0:y1, x0:x1]) if x0 < x1 and y0 < y1 else []
        return any(overlap(hit.box + (x0, y0, x0, y0), face.box) >= SAME_FACE_OVERLAP for hit in hits)

    def _search(self, image: np.ndarray, use_tiles: bool) -> list[tuple[Face, Region]]:
        """Detect faces in the full image, largest first."""
        short_range = [self._oriented(image, hit) for hit in self._short_range.detect(image)]
        hits = short_range + self._full_range.detect(image)
        if not hits and use_tiles and max(image.shape[:2]) > TILE_SIDE and self._tiles_are_due():
            hits = self._search_tiles(image)
        found = []
        for hit in _suppress_overlaps(hits):
            fitted = self._refine(image, hit)
            # The full-range network sometimes fires on cloth or hands: the short-range network must confirm its hits.
            if fitted is not None and (
                any(hit is other for other in short_range) or self._is_confirmed(image, fitted[0], self._short_range)
            ):
                found.append(fitted)
        found.sort(key=lambda item: -float(np.prod(item[0].size)))
        return _without_duplicates(found)[:MAX_FACES]

    def _refine(self, image: np.ndarray, hit: BoxDetection) -> tuple[Face, Region] | None:
        """Run the mesh twice: the region of the first mesh is more stable than that of the detection box."""
        first = self._fit_mesh(image, hit.region(), hit.score)
        second = None if first is None else self._fit_mesh(image, first[1], hit.score)
        return second if second is not None and _agreement(second[0].up, hit.up) >= MIN_AGREEMENT else None

    def _oriented(self, image: np.ndarray, hit: BoxDetection) -> BoxDetection:
        """The hit, or the same face as detected upside down if that scores higher."""
        if hit.score >= SURE_SCORE:
            return hit
        x0, y0, x1, y1 = _clipped_square(hit.box, 2.0, image.shape)
        found = self._short_range.detect(np.ascontiguousarray(image[y0:y1, x0:x1][::-1, ::-1])) if x0 < x1 else []
        turned = [other.turned_around(x1 - x0, y1 - y0).moved(x0, y0) for other in found]
        same = [other for other in turned if overlap(other.box, hit.box) >= SAME_FACE_OVERLAP]
        return max([hit, *same], key=lambda other: other.score)

    def _tiles_are_due(self) -> bool:
        """Limits the rate of the tiled search, which costs several times as much as a plain one."""
        self._since_tiles += 1
        due = self._since_tiles >= TILE_INTERVAL
        if due:
            self._since_tiles = 0
        return due

    def _search_tiles(self, image: np.ndarray) -> list[BoxDetection]:
        height, width = image.shape[:2]
        tile_height, tile_width = round(height * TILE_SHARE), round(width * TILE_SHARE)
        hits = []
        for y in (0, height - tile_height):
            for x in (0, width - tile_width):
                for hit in self._full_range.detect(image[y : y + tile_height, x : x + tile_width]):
                    hits.append(hit.moved(x, y))
        return hits


def _clipped_square(box: np.ndarray, scale: float, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Square of `scale` times the longer side of a box, centered on it and clipped to the image: x0, y0, x1, y1."""
    center, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).max() * scale / 2
    x0, y0 = np.maximum(center - half, 0).astype(int)
    x1, y1 = np.minimum(np.ceil(center + half), (shape[1], shape[0])).astype(int)
    return int(x0), int(y0), int(x1), int(y1)


def _look(image: np.ndarray, region: Region) -> np.ndarray:
    """What a region of an image (H, W, 3) looks like, brightness and contrast apart: a unit vector."""
    sampled, reduced = LOOK_SIDES
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    crop = cv2.warpAffine(image, crop_to_image(region, sampled), (sampled, sampled), flags=flags)
    look = cv2.resize(crop, (reduced, reduced), interpolation=cv2.INTER_AREA).mean(axis=2).ravel()
    look -= look.mean()
    return look / max(float(np.linalg.norm(look)), 1e-9)


def _agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Cosine of the angle between two vectors (2,)."""
    return float(first @ second) / max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-9)


def _suppress_overlaps(hits: list[BoxDetection]) -> list[BoxDetection]:
    """Non-maximum suppression: keep the detection with the highest score of each overlapping group."""
    kept: list[BoxDetection] = []
    for hit in sorted(hits, key=lambda hit: -hit.score):
        if all(overlap(hit.box, other.box) < SAME_FACE_OVERLAP for other in kept):
            kept.append(hit)
    return kept


def _without_duplicates(items: list[tuple[Face, Region]]) -> list[tuple[Face, Region]]:
    """Keep the first entry of each face."""
    kept: list[tuple[Face, Region]] = []
    for item in items:
        if all(overlap(item[0].box, other[0].box) < SAME_FACE_OVERLAP for other in kept):
            kept.append(item)
    return kept
