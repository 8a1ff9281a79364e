"""Face detection with InsightFace's buffalo_l models, as in the reference implementation.

The models are licensed for non-commercial use only and are never downloaded automatically.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from latentsync.faces.detector import Face, check_image, is_plausible
from latentsync.utils.errors import UserError

PACK = "buffalo_l"
MODEL_FILES = ("det_10g.onnx", "2d106det.onnx")
DETECTION_SIZE = (512, 512)
AT_ONCE = 4  # images of a batch; ONNX Runtime's sessions may be used by several threads

# Indices into the 106 landmarks of 2d106det: brow outlines; lower bridge, both wings and tip of the nose.
LEFT_BROW = [43, 48, 49, 51, 50]
RIGHT_BROW = [101, 102, 103, 104, 105]
NOSE = [74, 77, 83, 86]


class FaceApp(Protocol):
    """The part of `insightface.app.FaceAnalysis` used here; detections have bbox, det_score and landmark_2d_106."""

    def get(self, image: np.ndarray) -> Iterable[Any]: ...


def pack_folder(model_root: Path) -> Path:
    """Folder of the model pack below InsightFace's root."""
    return model_root / "models" / PACK


def missing_models(model_root: Path) -> list[Path]:
    """Required model files that do not exist."""
    return [path for name in MODEL_FILES if not (path := pack_folder(model_root) / name).is_file()]


def anchors_from_landmarks(landmarks: np.ndarray) -> np.ndarray:
    """Anchors (3, 2) from 106 landmarks (106, 2), rounded to whole pixels as in the training of the released models."""
    if landmarks.shape != (106, 2):
        raise ValueError(f"expected 106 landmarks (106, 2), got {landmarks.shape}")
    return np.round(np.stack([landmarks[group].mean(axis=0) for group in (LEFT_BROW, RIGHT_BROW, NOSE)]))


def faces_from_hits(hits: Iterable[Any]) -> list[Face]:
    """Convert the output of `FaceApp.get` to plausible faces, largest first; hits without landmarks are skipped."""
    faces = []
    for hit in hits:
        landmarks = getattr(hit, "landmark_2d_106", None)
        if landmarks is None:
            continue
        box = np.asarray(hit.bbox, dtype=np.float64)
        landmarks = np.asarray(landmarks, dtype=np.float64)
        contour = cv2.convexHull(landmarks.astype(np.float32))[:, 0].astype(np.float64)
        face = Face(box, anchors_from_landmarks(landmarks), float(hit.det_score), contour)
        if is_plausible(face):
            faces.append(face)
    return sorted(faces, key=lambda face: -float(np.prod(face.size)))


class InsightFaceDetector:
    """Face detector without temporal state. See `latentsync.faces.detector.BatchDetector`.

    Args:
        model_root: folder that contains models/buffalo_l.
        device: "cpu", "cuda" or "cuda:N"; any other device falls back to the CPU.
        app: a prepared `FaceAnalysis` to use instead of loading the models.

    Raises:
        UserError: missing model files or packages.
    """

    batch_size = 16

    def __init__(self, model_root: str | Path, device: str = "cpu", app: FaceApp | None = None) -> None:
        self._app: FaceApp | None = app if app is not None else _load_app(Path(model_root), device)
        self._threads = ThreadPoolExecutor(AT_ONCE, "detect")  # started on first use

    def detect(self, image: np.ndarray) -> list[Face]:
        check_image(image)
        if self._app is None:
            raise RuntimeError("the face detector is closed")
        return faces_from_hits(self._app.get(cv2.cvtColor(image, cv2.COLOR_RGB2BGR)))

    def detect_batch(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """A few images at the same time, in threads: the published networks take one image each, so that scaling,
        suppression and landmarks of one image overlap with the detection of others."""
        return list(self._threads.map(self.detect, images))

    def reset(self) -> None:
        """No-op: there is no temporal state."""

    def close(self) -> None:
        """Drop the ONNX Runtime sessions."""
        self._threads.shutdown()
        self._app = None


def _load_app(model_root: Path, device: str) -> FaceApp:
    missing = missing_models(model_root)
    if missing:
        raise UserError(
            f"InsightFace model {missing[0]} is missing: download the {PACK} pack (non-commercial use only) and unpack "
            f"it into {pack_folder(model_root)}, or use the mediapipe detector, which requires no download"
        )
    try:
        from insightface.app import FaceAnalysis
    except ImportError as error:
        raise UserError(f"the insightface detector requires insightface and onnxruntime ({error})") from error
    kind, _, number = device.partition(":")
    gpu = int(number or 0) if kind == "cuda" else -1
    providers: list = ["CPUExecutionProvider"]
    if gpu >= 0:
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": gpu}))
    # With a folder path as the name, InsightFace never tries to download.
    folder = str(pack_folder(model_root))
    app = FaceAnalysis(name=folder, allowed_modules=["detection", "landmark_2d_106"], providers=providers)
    app.prepare(ctx_id=gpu, det_size=DETECTION_SIZE)
    return app
