"""Step 3: where shots begin, found while the frames pass by (PySceneDetect's adaptive detector)."""

from collections import deque
from collections.abc import Iterator

from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from latentsync.constants import FPS
from preprocess.steps.resample import Sample

THUMBNAIL_SIDE = 256  # what PySceneDetect scales to by itself


def shots(samples: Iterator[Sample], threshold: float) -> Iterator[Sample]:
    """The same samples, marked where a new shot begins.

    threshold: how many times the usual change of the frames around (two on each side) a cut changes. Frames are passed
    on two behind: that many are held.
    """
    detector = _Detector(threshold)
    held: deque[Sample] = deque()
    for sample in samples:
        if sample.starts_shot:
            yield from held
            held.clear()
            detector = _Detector(threshold)
        cut = detector.update(sample)
        held.append(sample)
        if cut is not None:
            held = deque(_marked(known, cut) for known in held)
        if len(held) > detector.delay:
            yield held.popleft()
    yield from held


class _Detector:
    """PySceneDetect's detector over one stretch without holes."""

    def __init__(self, threshold: float) -> None:
        # Also of shots shorter than PySceneDetect's usual minimum nothing may get into the clip before.
        self._detector = AdaptiveDetector(adaptive_threshold=threshold, min_scene_len=1)
        self.delay = self._detector.event_buffer_length

    def update(self, sample: Sample) -> int | None:
        """Take the next frame; the number of the frame a shot begins with, if one has been found."""
        bgr = sample.frame.rgb(THUMBNAIL_SIDE)[..., ::-1]
        found = self._detector.process_frame(FrameTimecode(sample.index, fps=float(FPS)), bgr)
        return found[0].frame_num if found else None


def _marked(sample: Sample, cut: int) -> Sample:
    return sample._replace(starts_shot=sample.starts_shot or sample.index == cut)
