"""The default detector: MediaPipe's box and mesh networks, on the CPU, with nothing to download.

In a clip a face is carried from frame to frame by its own mesh (about 2 ms a face). The box networks run when
nothing is carried, when a carried face is lost, and every `CHECK_EVERY` frames to find new faces and to drop regions
that no longer hold one.
"""

from dataclasses import replace

import numpy as np

from latentsync.faces.detector import Face, check_image, is_plausible, overlap
from latentsync.faces.mediapipe_graphs import REGION_SCALE, BoxDetection, BoxNet, MeshNet, Region

FACE_OVAL = [10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377]
FACE_OVAL += [152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109]
EYE_CORNERS = [33, 263]  # outer corners: image left, image right
NOSE_TIP = 4

# Anchors. The template of `latentsync.faces.align` has the nose 20/41 of the brow distance below the brow line. These
# points meet that on average: 0.487 with a standard deviation of 0.039 between people, over 320 frames of the 19
# frontal GRID speakers, people weighted equally. The choice keeps the framing of the plain brow centers and nose
# (tip, wings, bridge), whose own ratio is 0.70, because that framing puts nose and chin where the mask has them:
#   brows: the four outer points of the lower brow edge (their mean is the brow's middle, 20.6 template units from
#          the center line; the template says 20.5);
#   nose:  lower bridge (197), both wings at their upper end (198, 420) and tip (4). The bridge's weight was solved
#          for the ratio, the other three share the rest.
LEFT_BROW = [46, 53, 52, 65]
RIGHT_BROW = [276, 283, 282, 295]
BRIDGE, WINGS = 197, [198, 420]
BRIDGE_WEIGHT = 0.284

POINTS = FACE_OVAL + EYE_CORNERS + LEFT_BROW + RIGHT_BROW + [BRIDGE, *WINGS, NOSE_TIP]
_PLACE = {index: place for place, index in enumerate(POINTS)}

MAX_FACES = 8
MIN_SIDE = 12.0  # image pixels: a mesh of a smaller face is guesswork
CHECK_EVERY = 15  # frames between looks at the whole picture
SAME_FACE_OVERLAP = 0.3
KEEP_SCORE = 0.3  # a carried face is dropped only when the box network sees none even at this low score
TILE_SIDE = 360  # pictures larger than this are also searched in overlapping parts
TILE_SHARE = 0.6  # side of a tile over the side of the picture, two tiles each way
TILE_EVERY = 10  # frames between tile searches while nothing is found


def _take(points: np.ndarray, indices: list[int]) -> np.ndarray:
    return points[[_PLACE[index] for index in indices]]


def anchors_from_mesh(points: np.ndarray) -> np.ndarray:
    """Anchors (3, 2) from the mesh points listed in `POINTS`, (len(POINTS), 2)."""
    others = _take(points, [*WINGS, NOSE_TIP]).mean(axis=0)
    nose = BRIDGE_WEIGHT * _take(points, [BRIDGE])[0] + (1 - BRIDGE_WEIGHT) * others
    return np.stack([_take(points, LEFT_BROW).mean(axis=0), _take(points, RIGHT_BROW).mean(axis=0), nose])


def region_from_mesh(points: np.ndarray) -> Region:
    """The region in which to look for the same face next: around oval and nose, turned with the eyes."""
    left, right = _take(points, EYE_CORNERS)
    angle = float(np.arctan2(right[1] - left[1], right[0] - left[0]))
    cos, sin = np.cos(angle), np.sin(angle)
    axes = np.array([[cos, sin], [-sin, cos]])
    upright = _take(points, [*FACE_OVAL, NOSE_TIP]) @ axes.T
    low, high = upright.min(axis=0), upright.max(axis=0)
    return Region(axes.T @ ((low + high) / 2), float((high - low).max()) * REGION_SCALE, angle)


def face_from_mesh(points: np.ndarray, score: float) -> Face:
    """Box of the face oval, upright in the image, and the anchors."""
    oval = _take(points, FACE_OVAL)
    return Face(np.concatenate([oval.min(axis=0), oval.max(axis=0)]), anchors_from_mesh(points), score, oval)


class MediaPipeDetector:
    """See `latentsync.faces.detector.FaceDetector`.

    Args:
        static: detect every picture afresh instead of carrying faces from frame to frame.
    """

    def __init__(self, static: bool = False):
        self.static = static
        self._mesh = MeshNet()
        self._near = BoxNet(full_range=False)
        self._near_check = BoxNet(full_range=False, min_score=KEEP_SCORE)
        self._far = BoxNet(full_range=True)
        self.reset()

    def reset(self) -> None:
        self._carried: list[tuple[Face, Region]] = []
        self._since_check = 0
        self._since_tiles: int | None = None

    def close(self) -> None:
        for net in (self._mesh, self._near, self._near_check, self._far):
            net.close()

    def detect(self, image: np.ndarray) -> list[Face]:
        check_image(image)
        if self.static:
            self.reset()
        carried = [self._follow(image, face, region) for face, region in self._carried]
        faces = _without_duplicates([item for item in carried if item is not None])
        self._since_check += 1
        if len(faces) < len(self._carried) or not faces or self._since_check >= CHECK_EVERY:
            faces = self._check(image, faces)
            self._since_check = 0
        self._carried = faces
        return [face for face, _ in faces]

    def _follow(self, image: np.ndarray, face: Face, region: Region) -> tuple[Face, Region] | None:
        """The same face in the next frame; None when it has gone or the mesh has jumped elsewhere."""
        found = self._measure(image, region, face.score)
        if found is None:
            return None
        step = np.linalg.norm(found[0].center - face.center) / face.size.max()
        growth = found[1].side / region.side
        return found if step < 0.5 and 0.6 < growth < 1.6 else None

    def _measure(self, image: np.ndarray, region: Region, score: float) -> tuple[Face, Region] | None:
        points = self._mesh.points(image, region, POINTS)
        if points is None:
            return None
        face = face_from_mesh(points, score)
        height, width = image.shape[:2]
        inside = (0 <= face.center).all() and (face.center <= (width, height)).all()
        if not inside or face.size.max() < MIN_SIDE or not is_plausible(face):
            return None
        return face, region_from_mesh(points)

    def _check(self, image: np.ndarray, carried: list[tuple[Face, Region]]) -> list[tuple[Face, Region]]:
        """Carried faces that hold, with their scores renewed, and the faces that are new."""
        fresh = self._search(image, look_closer=not carried)
        kept = []
        for face, region in carried:
            match = max(fresh, key=lambda item: overlap(item[0].box, face.box), default=None)
            if match is not None and overlap(match[0].box, face.box) >= SAME_FACE_OVERLAP:
                kept.append((replace(face, score=match[0].score), region))
            elif self._still_a_face(image, face, self._near_check):
                kept.append((face, region))
        return _without_duplicates(kept + fresh)[:MAX_FACES]

    def _still_a_face(self, image: np.ndarray, face: Face, net: BoxNet) -> bool:
        """The box network `net` agrees when it looks closely at the face's surroundings."""
        x0, y0, x1, y1 = _clipped_square(face, 2.0, image.shape)
        hits = net.detect(image[y0:y1, x0:x1]) if x0 < x1 and y0 < y1 else []
        return any(overlap(hit.box + (x0, y0, x0, y0), face.box) >= SAME_FACE_OVERLAP for hit in hits)

    def _search(self, image: np.ndarray, look_closer: bool) -> list[tuple[Face, Region]]:
        """Faces in the whole picture, largest first."""
        near = self._near.detect(image)
        far = self._far.detect(image)
        if not near and not far and look_closer and max(image.shape[:2]) > TILE_SIDE and self._tiles_are_due():
            far = self._search_tiles(image)
        found = []
        for hit in _strongest(near + far):
            measured = self._measure_twice(image, hit)
            # Small hits of the far network are sometimes cloth or hands: the near network has to agree, up close.
            if measured is not None and (
                any(hit is other for other in near) or self._still_a_face(image, measured[0], self._near)
            ):
                found.append(measured)
        found.sort(key=lambda item: -float(np.prod(item[0].size)))
        return _without_duplicates(found)[:MAX_FACES]

    def _measure_twice(self, image: np.ndarray, hit: BoxDetection) -> tuple[Face, Region] | None:
        """The second look starts from the first mesh, a steadier region than the box network's."""
        first = self._measure(image, hit.region(), hit.score)
        return None if first is None else self._measure(image, first[1], hit.score)

    def _tiles_are_due(self) -> bool:
        """Tiles cost several times a plain search: while nothing is found, they wait a few frames between tries."""
        waited = self._since_tiles
        due = waited is None or waited + 1 >= TILE_EVERY
        self._since_tiles = 0 if due else waited + 1
        return due

    def _search_tiles(self, image: np.ndarray) -> list[BoxDetection]:
        height, width = image.shape[:2]
        tile_height, tile_width = round(height * TILE_SHARE), round(width * TILE_SHARE)
        hits = []
        for y in (0, height - tile_height):
            for x in (0, width - tile_width):
                for hit in self._far.detect(image[y : y + tile_height, x : x + tile_width]):
                    hits.append(BoxDetection(hit.box + (x, y, x, y), hit.eyes + (x, y), hit.score))
        return hits


def _clipped_square(face: Face, scale: float, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Square of `scale` times the face's long side around it, clipped to the image: x0, y0, x1, y1."""
    half = face.size.max() * scale / 2
    x0, y0 = np.maximum(face.center - half, 0).astype(int)
    x1, y1 = np.minimum(np.ceil(face.center + half), (shape[1], shape[0])).astype(int)
    return int(x0), int(y0), int(x1), int(y1)


def _strongest(hits: list[BoxDetection]) -> list[BoxDetection]:
    """One hit for each place, the one with the best score."""
    kept: list[BoxDetection] = []
    for hit in sorted(hits, key=lambda hit: -hit.score):
        if all(overlap(hit.box, other.box) < SAME_FACE_OVERLAP for other in kept):
            kept.append(hit)
    return kept


def _without_duplicates(items: list[tuple[Face, Region]]) -> list[tuple[Face, Region]]:
    """The first of the entries that lie on one face."""
    kept: list[tuple[Face, Region]] = []
    for item in items:
        if all(overlap(item[0].box, other[0].box) < SAME_FACE_OVERLAP for other in kept):
            kept.append(item)
    return kept
