"""Step 5: track and align every person in a segment at the training resolution.

Legend: T frames, R side of an aligned face. Only the aligned faces are kept in memory, never the frames.
"""

from fractions import Fraction

import numpy as np

from latentsync.faces.everyone import Gap, PeopleTracker, PersonTrack
from preprocess.clip import FPS, Clip, Figure, Segment
from preprocess.settings import ProcessSettings
from preprocess.tools import Tools

STEP = "faces"


def faces(segment: Segment, settings: ProcessSettings, tools: Tools) -> list[Clip]:
    """One clip for each run in which a person is in view without a gap or a cut; reads the whole segment.

    Frames in which nobody could be tracked become gaps with the reason, so that no frame is unaccounted for; a segment
    of nothing else becomes one dropped clip, with the reason of its longest gap. Figures: `faces` (highest number of
    people at once), `face_size` (mean width in pixels of the source), `jitter` (see `PersonTrack`).
    """
    detector = tools.still_detector if segment.is_still else tools.detector
    tracker = PeopleTracker(detector, settings.resolution, FPS, settings.smooth)
    tracks = list(tracker.tracks(segment))
    if not tracks:
        length = segment.num_frames
        empty = Clip(segment.source, segment.index, 0, segment.start, None, None, {"faces": 0}, length=length)
        return [empty.dropped(STEP, max(tracker.gaps, key=lambda gap: gap.length).reason)]
    needed = 1 if segment.is_still else settings.min_frames
    largest = max(tracks, key=lambda track: float(np.sum(np.square(track.widths)))).person
    tracks.sort(key=lambda track: track.person)
    clips = [_clip(track, segment, settings, tracker.most, needed, largest) for track in tracks]
    return clips + [_gap(gap, segment, len(clips) + number) for number, gap in enumerate(tracker.gaps)]


def _gap(gap: Gap, segment: Segment, number: int) -> Clip:
    start = segment.start + Fraction(gap.start, FPS)
    clip = Clip(segment.source, segment.index, number, start, None, None, length=gap.length, is_gap=True)
    return clip.dropped(STEP, gap.reason)


def _clip(
    track: PersonTrack, segment: Segment, settings: ProcessSettings, most: int, needed: int, largest: int
) -> Clip:
    """The clip of a track; dropped if it is shorter than `needed` or the settings exclude it."""
    figures: dict[str, Figure] = {
        "faces": most,
        "face_size": round(float(np.mean(track.widths)), 1),
        "jitter": round(track.jitter, 5),
    }
    start = segment.start + Fraction(track.start, FPS)
    wave = segment.audio(len(track), track.start)
    clip = Clip(segment.source, segment.index, track.person, start, np.stack(track.pixels), wave, figures)
    if clip.num_frames < needed:
        return clip.dropped(STEP, f"a face in view for {clip.num_frames} frames, {needed} are needed")
    if settings.many_faces == "drop" and most > 1:
        return clip.dropped(STEP, f"{most} faces at once")
    if settings.many_faces == "largest" and clip.person != largest:
        return clip.dropped(STEP, "not the largest face")
    return clip
