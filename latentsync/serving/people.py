"""The people in an uploaded video, found in a child process with limits."""

from dataclasses import dataclass
from pathlib import Path

from latentsync.serving.inspection import printable_name
from latentsync.utils.errors import UserError
from latentsync.utils.sandbox import Limits, call_limited

LIMITS = Limits(seconds=240.0, cpu_seconds=240.0, memory_bytes=4 * 2**30, open_files=256, file_bytes=2**20)
SCANNED_SECONDS = 120  # of the video
MOST_PEOPLE = 50
QUALITY = 85  # of the portraits


@dataclass(frozen=True)
class PersonInVideo:
    """name: the value of the option `face`. seconds: (start, end) of each track, in seconds of the video. first_box:
    (x0, y0, x1, y1) in pixels where the person is first seen. portrait: a JPEG, 160 x 160 pixels."""

    name: str
    seconds: tuple[tuple[float, float], ...]
    first_box: tuple[int, int, int, int]
    portrait: bytes


def list_people(path: Path, name: str | None = None) -> list[PersonInVideo]:
    """Everyone in an image or the first `SCANNED_SECONDS` of a video, in order of appearance, at most `MOST_PEOPLE`.

    name: of the file, for messages.

    Raises:
        UserError: the file cannot be decoded, or takes longer than the limits allow.
    """
    try:
        return [PersonInVideo(*values) for values in call_limited(_scan, path, limits=LIMITS)]
    except UserError as error:
        raise UserError(str(error).replace(str(path), printable_name(name or path.name))) from error


def _scan(path: Path) -> list[tuple]:
    # Imported late: the process that forks this one stays small, and has one thread.
    import cv2

    from latentsync.pipelines.people import find_people

    found: list[tuple] = []
    for item in find_people(path, most_seconds=SCANNED_SECONDS)[:MOST_PEOPLE]:
        person = item.person
        pixels = cv2.cvtColor(person.portrait, cv2.COLOR_RGB2BGR)
        portrait = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
        spans = tuple((float(track.sightings[0].time), float(track.sightings[-1].time)) for track in person.tracks)
        found.append((person.name, spans, tuple(round(float(value)) for value in person.sightings[0].box), portrait))
    return found
