"""Step 3: detect shot boundaries with PySceneDetect's adaptive detector while frames are decoded."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from latentsync.constants import FPS
from preprocess.steps.resample import Sample

THUMBNAIL_SIDE = 256  # the size that PySceneDetect itself scales to


def shots(samples: Iterator[Sample], threshold: float) -> Iterator[Sample]:
    """Mark the samples that start a new shot. The output lags behind by two frames.

    threshold: ratio of a frame's change to the mean change of two frames on each side, above which it is a cut.
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
    """PySceneDetect's detector over consecutive frames without gaps."""

    def __init__(self, threshold: float) -> None:
        # No minimum length: frames of a very short shot must not end up in the previous clip.
        self._detector = AdaptiveDetector(adaptive_threshold=threshold, min_scene_len=1)
        self.delay = self._detector.event_buffer_length

    def update(self, sample: Sample) -> int | None:
        """Add the next frame; returns the index of the frame that starts a shot, if one was detected."""
        bgr = sample.frame.rgb(THUMBNAIL_SIDE)[..., ::-1]
        found = self._detector.process_frame(FrameTimecode(sample.index, fps=float(FPS)), bgr)
        return found[0].frame_num if found else None


def _marked(sample: Sample, cut: int) -> Sample:
    return replace(sample, starts_shot=True) if sample.index == cut else sample
