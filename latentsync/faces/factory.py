"""Creation of face detectors by name."""

from pathlib import Path

from latentsync.faces.detector import FaceDetector
from latentsync.faces.insightface_detector import InsightFaceDetector, missing_models
from latentsync.options import AUTO, DETECTORS
from latentsync.utils.errors import UserError
from latentsync.utils.paths import CHECKPOINTS_DIR

DEFAULT_MODEL_ROOT = CHECKPOINTS_DIR / "auxiliary"


def create_detector(
    name: str = AUTO, device: str = "cpu", model_root: str | Path | None = None, static: bool = False
) -> FaceDetector:
    """Create a face detector.

    Args:
        name: "mediapipe" (no download), "insightface" (requires the buffalo_l models), or "auto": InsightFace if
            its models are present, otherwise MediaPipe.
        device: "cpu", "cuda" or "cuda:N"; MediaPipe always runs on the CPU.
        model_root: folder that contains models/buffalo_l; default: checkpoints/auxiliary.
        static: the images are unrelated; detect faces in each one independently.

    Raises:
        UserError: unknown name or missing models.
    """
    root = Path(model_root) if model_root is not None else DEFAULT_MODEL_ROOT
    if name not in DETECTORS:
        raise UserError(f"unknown face detector {name!r}: choose one of {', '.join(DETECTORS)}")
    if name == "insightface" or (name == AUTO and not missing_models(root)):
        return InsightFaceDetector(model_root=root, device=device)
    # Imported late: loading MediaPipe takes a second.
    from latentsync.faces.mediapipe_detector import MediaPipeDetector

    return MediaPipeDetector(static=static)
