"""Thin wrappers of MediaPipe's networks: face detection in an image, the mesh of one face, and hands.

The models are bundled with the mediapipe 0.10.21 wheel. The mesh runs in a custom graph around MediaPipe's
`FaceLandmarkCpu`, because the stock FaceMesh solution selects the region of interest itself: its short-range detector
misses small faces, and the region cannot be set by the caller.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from latentsync.faces.resample import warp_rgb
from latentsync.utils.errors import UserError
from latentsync.utils.light_imports import import_light

NUM_POINTS = 468  # of the mesh
MESH_SIDE = 192  # input resolution of the mesh network
DETECTION_SIDE = 960  # maximum image side passed to the detection networks, whose inputs are 128 and 192 pixels
FRAME_MICROSECONDS = 33_333  # between the images that a graph is given
REGION_SCALE = 1.5  # side of the mesh region relative to the longer side of the face, as in training

# mediapipe modules. The first and those of the solutions are imported for the graph options that they register.
MODULES = (
    "calculators.core.constant_side_packet_calculator_pb2",
    "framework.calculator_pb2",
    "framework.formats.rect_pb2",
    "python.solution_base",
    "python.solutions.face_detection",
    "python.solutions.face_mesh",
    "python.solutions.hands",
)
SOLUTIONS = "mediapipe.python.solutions"
# The graph runs in the thread that calls it: handing its steps to another one takes a tenth of their time.
MESH_GRAPH = """
executor { type: "ApplicationThreadExecutor" }
input_stream: "image"
input_stream: "roi"
output_stream: "landmarks"
node {
  calculator: "ConstantSidePacketCalculator"
  output_side_packet: "PACKET:with_attention"
  options: { [mediapipe.ConstantSidePacketCalculatorOptions.ext]: { packet { bool_value: false } } }
}
node {
  calculator: "FaceLandmarkCpu"
  input_stream: "IMAGE:image"
  input_stream: "ROI:roi"
  input_side_packet: "WITH_ATTENTION:with_attention"
  output_stream: "LANDMARKS:landmarks"
}
"""

# Irrelevant start-up messages of protobuf, absl and TensorFlow Lite.
NOISE = re.compile(
    rb"GetPrototype|TensorFlow Lite XNNPACK delegate|before absl::InitializeLog|inference_feedback_manager"
    rb"|landmark_projection_calculator|Feedback manager requires"
)

_stderr_lock = threading.Lock()  # concurrent redirections would restore each other's files


@dataclass(frozen=True)
class Region:
    """Rotated square region of interest around a face, in image pixels."""

    center: np.ndarray  # (2,)
    side: float
    angle: float  # radians, clockwise on screen: direction from the eye on the image's left to the other eye


@dataclass(frozen=True)
class BoxDetection:
    """Output of a detection network, in image pixels."""

    box: np.ndarray  # (4,) x0, y0, x1, y1
    eyes: np.ndarray  # (2, 2) the person's right eye (on the left in an upright image), left eye
    mouth: np.ndarray  # (2,) center
    score: float

    @property
    def up(self) -> np.ndarray:
        """(2,) vector from the mouth to the eyes."""
        return self.eyes.mean(axis=0) - self.mouth

    def moved(self, x: float, y: float) -> "BoxDetection":
        """The detection in an image in which this one's image lies at (x, y)."""
        offset = np.array([x, y])
        return BoxDetection(self.box + np.tile(offset, 2), self.eyes + offset, self.mouth + offset, self.score)

    def turned_around(self, width: int, height: int) -> "BoxDetection":
        """The detection in the image (`width` x `height`) turned by 180 degrees."""
        corner = np.array([width, height], dtype=float)
        box = np.concatenate([corner - self.box[2:], corner - self.box[:2]])
        return BoxDetection(box, corner - self.eyes, corner - self.mouth, self.score)

    def region(self) -> Region:
        """Region of interest for the mesh network."""
        dx, dy = self.eyes[1] - self.eyes[0]
        size = self.box[2:] - self.box[:2]
        center = (self.box[:2] + self.box[2:]) / 2
        return Region(center, float(size.max()) * REGION_SCALE, float(np.arctan2(dy, dx)))


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Buffer output of native code to file descriptor 2 and drop known noise from it.

    The descriptor is shared by the whole process, so only start-up runs in this context. Output of other threads is
    delayed, not lost.
    """
    with _stderr_lock, tempfile.TemporaryFile() as buffer:
        sys.stderr.flush()
        saved = os.dup(2)
        try:
            os.dup2(buffer.fileno(), 2)
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            buffer.seek(0)
            rest = b"".join(line for line in buffer if not NOISE.search(line))
            if rest:
                os.write(2, rest)


class _LazyMediapipe(ModuleType):
    """Stand-in for the mediapipe package that imports its contents on first use, for other code in this process. The
    real `__init__` imports everything, and fails if parts of the package have been imported already."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__("mediapipe")
        self.__spec__, self.__path__ = spec, list(spec.submodule_search_locations or ())

    def __getattr__(self, name: str) -> object:
        if name == "__version__":
            value: object = importlib.metadata.version("mediapipe")
        elif name.startswith("__"):
            raise AttributeError(name)
        elif name in ("solutions", "tasks"):
            value = importlib.import_module("mediapipe.tasks.python" if name == "tasks" else SOLUTIONS)
        else:
            value = getattr(importlib.import_module("mediapipe.python"), name)
        setattr(self, name, value)
        return value


@cache
def import_mediapipe() -> dict[str, ModuleType]:
    """Import `MODULES`, without mediapipe's drawing and audio packages, and return them by name. Sets the log level.

    Raises:
        UserError: the package is not installed.
    """
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    spec = importlib.util.find_spec("mediapipe")
    if "mediapipe" not in sys.modules and spec is not None:
        sys.modules["mediapipe"] = _LazyMediapipe(spec)
    try:
        loaded = [import_light(f"mediapipe.{name}", bare=(SOLUTIONS,), forget=SOLUTIONS) for name in MODULES]
        return {module.__name__.rpartition(".")[2]: module for module in loaded}
    except ImportError as error:
        raise UserError(
            f"the face detector requires mediapipe 0.10.21 ({error}): pip install --no-deps mediapipe==0.10.21"
        ) from error


class MeshNet:
    """MediaPipe's 468-point face mesh on a region of an image."""

    def __init__(self) -> None:
        with quiet_stderr():
            modules = import_mediapipe()
            from google.protobuf import text_format

            self._mediapipe = base = modules["solution_base"]
            base.resource_util.set_resource_dir(str(Path(str(base.__file__)).parents[2]))
            config = text_format.Parse(MESH_GRAPH, modules["calculator_pb2"].CalculatorGraphConfig())
            self._graph = base.calculator_graph.CalculatorGraph(graph_config=config)
            self._outputs: dict[str, Any] = {}
            self._time = 0
            # Not a Python function: a signal that arrives in one raises KeyboardInterrupt there, which MediaPipe does
            # not expect and ends the process.
            self._graph.observe_output_stream("landmarks", self._outputs.__setitem__, True)
            self._graph.start_run({})
            # `points` crops the region upright, so the graph always processes its whole input.
            self._full_region = modules["rect_pb2"].NormalizedRect(x_center=0.5, y_center=0.5, width=1.0, height=1.0)
            self._run(np.zeros((MESH_SIDE, MESH_SIDE, 3), np.uint8))

    def points(self, image: np.ndarray, region: Region, indices: list[int]) -> np.ndarray | None:
        """Mesh points `indices` of the face in `region`, (len(indices), 2) in image pixels; None without a face."""
        if not (region.side >= 1 and np.isfinite(region.center).all()):
            return None
        # Bilinear sampling of a region much larger than the input would alias, so downscale by area averaging.
        factor = int(np.clip(round(region.side / MESH_SIDE), 1, 3))
        side = MESH_SIDE * factor
        to_image = crop_to_image(region, side)
        crop = warp_rgb(image, to_image, (side, side), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        if factor > 1:
            crop = cv2.resize(crop, (MESH_SIDE, MESH_SIDE), interpolation=cv2.INTER_AREA)
        landmarks = self._run(crop)
        if landmarks is None:
            return None
        points = np.array([(landmarks[i].x, landmarks[i].y) for i in indices]) * side - 0.5
        return points @ to_image[:, :2].T + to_image[:, 2]

    def _run(self, crop: np.ndarray) -> Any:
        create, srgb = self._mediapipe.packet_creator, self._mediapipe.image_frame.ImageFormat.SRGB
        self._time += FRAME_MICROSECONDS
        image = create.create_image_frame(crop, image_format=srgb)
        self._graph.add_packet_to_input_stream("image", image.at(self._time))
        self._graph.add_packet_to_input_stream("roi", create.create_proto(self._full_region).at(self._time))
        self._graph.wait_until_idle()
        result = self._outputs["landmarks"]
        return None if result.is_empty() else self._mediapipe.packet_getter.get_proto(result).landmark

    def close(self) -> None:
        """Release the graph. May be called repeatedly."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None


def crop_to_image(region: Region, side: int) -> np.ndarray:
    """Affine matrix (2, 3) from pixel centers of a `side`-square crop of the region to pixel centers of the image."""
    step = region.side / side
    cos, sin = np.cos(region.angle) * step, np.sin(region.angle) * step
    linear = np.array([[cos, -sin], [sin, cos]])
    middle = (side - 1) / 2
    return np.column_stack([linear, region.center - linear @ (middle, middle)])


class BoxNet:
    """MediaPipe's face detection: the short-range network (large faces, 2 ms) or the full-range network (5 ms)."""

    def __init__(self, full_range: bool, min_score: float = 0.5) -> None:
        with quiet_stderr():
            detection = import_mediapipe()["face_detection"]
            self._net = detection.FaceDetection(model_selection=int(full_range), min_detection_confidence=min_score)
            self._net.process(np.zeros((64, 64, 3), np.uint8))

    def detect(self, image: np.ndarray) -> list[BoxDetection]:
        """Detect faces in an RGB image (H, W, 3) uint8."""
        height, width = image.shape[:2]
        shrink = DETECTION_SIDE / max(height, width)
        if shrink < 1:
            size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        hits = self._net.process(np.ascontiguousarray(image)).detections or []
        return [_box_detection(hit, width, height) for hit in hits]

    def close(self) -> None:
        """Release the network. May be called repeatedly."""
        if self._net is not None:
            self._net.close()
            self._net = None


def _box_detection(hit: Any, width: int, height: int) -> BoxDetection:
    box = hit.location_data.relative_bounding_box
    corners = np.array([box.xmin, box.ymin, box.xmin + box.width, box.ymin + box.height])
    # Keypoints: right eye, left eye, nose tip, mouth, ears.
    points = np.array([(point.x, point.y) for point in hit.location_data.relative_keypoints[:4]]) * (width, height)
    return BoxDetection(corners * (width, height, width, height), points[:2], points[3], float(hit.score[0]))


class HandNet:
    """MediaPipe's palm detection (10 ms) and hand landmarks (6 ms a hand), which follow hands from image to image."""

    def __init__(self) -> None:
        with quiet_stderr():
            self._net = import_mediapipe()["hands"].Hands(model_complexity=0)
            self._net.process(np.zeros((64, 64, 3), np.uint8))

    def detect(self, image: np.ndarray) -> list[np.ndarray]:
        """The 21 landmarks of up to two hands in an RGB image (H, W, 3) uint8: (21, 2) each, in image pixels."""
        height, width = image.shape[:2]
        hands = self._net.process(image).multi_hand_landmarks or []
        return [np.array([(point.x, point.y) for point in hand.landmark]) * (width, height) for hand in hands]

    def close(self) -> None:
        """Release the network. May be called repeatedly."""
        if self._net is not None:
            self._net.close()
            self._net = None
