"""The choice between the face detectors."""

from pathlib import Path

from latentsync.constants import CHECKPOINTS_DIR
from latentsync.faces.detector import FaceDetector
from latentsync.faces.insightface_detector import InsightFaceDetector, missing_models
from latentsync.utils.errors import UserError

DETECTORS = ("auto", "mediapipe", "insightface")
DEFAULT_MODEL_ROOT = CHECKPOINTS_DIR / "auxiliary"


def create_detector(
    name: str = "auto", device: str = "cpu", model_root: str | Path | None = None, static: bool = False
) -> FaceDetector:
    """Build a detector.

    Args:
        name: "mediapipe" (no download), "insightface" (needs the buffalo_l models), or "auto": InsightFace where
            its models are present, MediaPipe elsewhere.
        device: "cpu", "cuda" or "cuda:N"; MediaPipe always runs on the CPU.
        model_root: folder that holds models/buffalo_l, default checkpoints/auxiliary.
        static: images are unrelated, so detect each one afresh.

    Raises:
        UserError: unknown name, or models that are missing.
    """
    root = Path(model_root) if model_root is not None else DEFAULT_MODEL_ROOT
    if name not in DETECTORS:
        raise UserError(f"face detector {name!r} is unknown: choose one of {', '.join(DETECTORS)}")
    if name == "insightface" or (name == "auto" and not missing_models(root)):
        return InsightFaceDetector(model_root=root, device=device)
    # Loading MediaPipe takes a second that InsightFace's users need not wait.
    from latentsync.faces.mediapipe_detector import MediaPipeDetector

    return MediaPipeDetector(static=static)
