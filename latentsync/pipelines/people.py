"""The people in a video, who of them speaks, and the values of the option `face` that name one."""

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import cv2
import numpy as np

from latentsync.constants import FPS, SAMPLE_RATE
from latentsync.data.clips import to_pixel_values
from latentsync.faces.factory import create_detector
from latentsync.faces.people import PORTRAIT_SIDE, PeopleFinder, Person, Track
from latentsync.faces.tracking import SelectRule
from latentsync.media.audio import SpooledAudio
from latentsync.media.audio_stream import has_audio, select_audio
from latentsync.media.samples import Samples
from latentsync.media.sources import IN_MEMORY, VideoInput, VideoSource, open_video
from latentsync.options import AUTO
from latentsync.utils.errors import UserError

if TYPE_CHECKING:
    from latentsync.metrics.clip_sync import EmbeddedScorer

SCAN_FPS = Fraction(5)  # where only faces are looked for
SYNC_SECONDS = 10  # of each track that are compared with the audio
OFFSET_REACH = 5  # frames between audio and video
NEAR_SECONDS = Fraction(1, 2)  # between a time and a sighting that counts for it
SPEAKER, PERSON = "speaker", re.compile(r"person(\d+)")
CAPTION_HEIGHT = 44


@dataclass(frozen=True)
class FoundPerson:
    """A person, and the distance of the mouth from the audio: the smaller the likelier is it the speaker.

    It is None where it was not measured. 0 to 2, see `latentsync.metrics.sync`.
    """

    person: Person
    distance: float | None = None

    def describe(self) -> dict[str, object]:
        """Name, time in view, and place of the first sighting, as JSON."""
        box = [round(float(value)) for value in self.person.sightings[0].box]
        spans = [(track.sightings[0].time, track.sightings[-1].time) for track in self.person.tracks]
        return {
            "name": self.person.name,
            "seconds": [[float(start), float(end)] for start, end in spans],
            "first_box": box,
            "sync_distance": None if self.distance is None else round(self.distance, 3),
        }


def find_people(
    video: VideoInput | VideoSource,
    *,
    detector: str = AUTO,
    device: str = "cpu",
    speaking: bool = False,
    most_seconds: float | None = None,
) -> list[FoundPerson]:
    """Everyone in a video, in order of appearance.

    Args:
        video: see `latentsync.media.sources`.
        detector: see the option.
        device: where the networks run.
        speaking: also compare each mouth with the audio of the video, which takes several times as long.
        most_seconds: of the video that are looked at; None for all.

    Raises:
        UserError: the video cannot be read, or has no audio to compare with.
    """
    if isinstance(video, VideoSource):
        return _find(video, detector, device, speaking, most_seconds)
    with open_video(video) as source:
        return _find(source, detector, device, speaking, most_seconds)


def resolve_faces(
    faces: Sequence[str], source: VideoSource, detector: str = AUTO, device: str = "cpu"
) -> list[str | SelectRule]:
    """Selections for `FaceTracker` from values of the option `face`; scans the video if one of them needs it.

    Raises:
        UserError: there is no such person.
    """
    if not any(face == SPEAKER or PERSON.fullmatch(face) or "@" in face for face in faces):
        return list(faces)
    found = find_people(source, detector=detector, device=device, speaking=SPEAKER in faces)
    if not found:
        raise UserError(f"{source.info.path}: no face was found in any frame; use a video that shows one")
    galleries = tuple(tuple(item.person.gallery) for item in found)

    def resolve(face: str) -> str | SelectRule:
        if (match := PERSON.fullmatch(face)) is not None:
            number = int(match[1])
            if not 1 <= number <= len(found):
                raise UserError(f"{source.info.path}: there is no {face}, only person1 to person{len(found)}")
            return SelectRule("person", number - 1, people=galleries)
        if face == SPEAKER:
            return SelectRule("person", found.index(likely_speaker(found)), people=galleries)
        if "@" in face:
            return SelectRule("person", found.index(_at(found, face, source)), people=galleries)
        return face

    return [resolve(face) for face in faces]


def likely_speaker(people: Sequence[FoundPerson]) -> FoundPerson:
    """The person whose mouth is closest to the audio; the one longest in view where that is not known."""
    return min(
        people,
        key=lambda item: (np.inf if item.distance is None else item.distance, -len(item.person.sightings)),
    )


def people_strip(people: Sequence[FoundPerson]) -> np.ndarray:
    """An image (H, W, 3) uint8 RGB with everyone's portrait, name and time in view."""
    side = PORTRAIT_SIDE
    strip = np.full((side + CAPTION_HEIGHT, side * max(1, len(people)), 3), 24, np.uint8)
    for number, item in enumerate(people):
        left = number * side
        strip[:side, left : left + side] = item.person.portrait
        times = [sighting.time for sighting in item.person.sightings]
        lines = (item.person.name, f"{float(min(times)):.1f} - {float(max(times)):.1f} s")
        for row, line in enumerate(lines):
            place = (left + 6, side + 18 + 18 * row)
            cv2.putText(strip, line, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return strip


def _find(
    source: VideoSource, detector: str, device: str, speaking: bool, most_seconds: float | None
) -> list[FoundPerson]:
    fps = Fraction(FPS) if speaking else SCAN_FPS
    count = source.available(fps)
    if count is None:
        raise UserError("people are looked for in files and arrays, not in an iterator; choose the face by its place")
    if most_seconds is not None:
        count = min(count, max(1, int(most_seconds * fps)))
    scorer = _open_scorer(device) if speaking else None
    resolution = None if scorer is None else scorer.scorer.resolution
    opened = create_detector(detector, device, static=not speaking)
    finder = PeopleFinder(opened, resolution, SYNC_SECONDS * FPS, fps)
    with closing(opened), closing(source.open(count / fps, fps, "freeze")) as frames:
        for index, frame in enumerate(frames):
            finder.add(index / fps, frame)
    people = finder.people()
    if scorer is None:
        return [FoundPerson(person) for person in people]
    with closing(_sound(source)) as wave:
        return [FoundPerson(person, _distance(person, wave, scorer)) for person in people]


def _open_scorer(device: str) -> "EmbeddedScorer":
    from latentsync.metrics.clip_sync import EmbeddedScorer  # imported late: most runs need no SyncNet

    return EmbeddedScorer(device)


def _sound(source: VideoSource) -> SpooledAudio:
    path, part = source.info.path, source.part
    if path == IN_MEMORY or source.info.is_still or not has_audio(path):
        raise UserError(f"{path}: the video has no audio to find the speaker by; choose the face by name or position")
    return SpooledAudio(select_audio(path, None, path, part.start, part.end), SAMPLE_RATE)


def _distance(person: Person, wave: Samples, scorer: "EmbeddedScorer") -> float | None:
    """Mean distance over a person's tracks, by their length; None if all are too short."""
    shortest = scorer.scorer.num_frames + OFFSET_REACH
    tracks = [track for track in person.tracks if len(track.faces) >= shortest]
    scores = [(len(track.faces), _track_distance(track, wave, scorer)) for track in tracks]
    known = [(length, score) for length, score in scores if score is not None]
    total = sum(length for length, _ in known)
    return sum(length * score for length, score in known) / total if total else None


def _track_distance(track: Track, wave: Samples, scorer: "EmbeddedScorer") -> float | None:
    start = round(track.sightings[0].time * SAMPLE_RATE)
    part = wave[start : start + len(track.faces) * SAMPLE_RATE // FPS]
    if scorer.scorer.frames_of(len(track.faces), part) < scorer.scorer.num_frames + OFFSET_REACH:
        return None
    from latentsync.metrics.sync import offset_score

    vision, audio = scorer.scorer.embed(to_pixel_values(np.stack(track.faces)), part)
    return float(offset_score(vision, audio, OFFSET_REACH).distances.min())


def _at(people: Sequence[FoundPerson], face: str, source: VideoSource) -> FoundPerson:
    """The person at x,y at a time, given as x,y@seconds."""
    place, _, seconds = face.partition("@")
    point = np.array([float(value) for value in place.split(",")])
    time = Fraction(seconds) - source.part.start
    near = [
        (float(np.linalg.norm((sighting.box[:2] + sighting.box[2:]) / 2 - point)), item)
        for item in people
        for sighting in item.person.sightings
        if abs(sighting.time - time) <= NEAR_SECONDS
    ]
    if not near:
        raise UserError(f"{source.info.path}: there is no face at {float(Fraction(seconds)):g} s; choose another time")
    return min(near, key=lambda entry: entry[0])[1]
