"""The people in a video: found across shots, chosen by name or by position and time."""

from fractions import Fraction

import numpy as np
import pytest

from latentsync.faces.appearance import Appearance
from latentsync.faces.detector import Face
from latentsync.faces.people import PeopleFinder, Person, Sighting, Track
from latentsync.faces.tracking import SelectRule
from latentsync.media.sources import open_video
from latentsync.pipelines import people
from latentsync.pipelines.people import FoundPerson, find_people, likely_speaker, people_strip, resolve_faces
from latentsync.utils.errors import UserError
from scripts import people as command
from tests.pipelines.scenes import WIDTH, clip, draw_scene


def view(*pattern: float) -> Appearance:
    values = np.array(pattern, np.float32)
    return Appearance(values / np.linalg.norm(values), np.zeros(2, np.float32))


ANNA, BEN = view(1, 0, 0), view(0, 1, 0)


def face_at(x: float) -> Face:
    return Face(np.array([x - 50, 50, x + 50, 150.0]), np.zeros((3, 2)), 1.0)


def test_a_face_is_recognized_by_its_appearance():
    rule = SelectRule("person", 1, people=((ANNA,), (BEN, view(0, 1, 0.2))))
    left, right = face_at(100), face_at(300)
    looks = {id(left): view(0.1, 1, 0), id(right): view(1, 0.1, 0)}
    assert rule.choose([left, right], lambda face: looks[id(face)]) is left
    assert rule.choose([right], lambda face: looks[id(face)]) is None
    assert rule.choose([left], lambda face: view(0, 0, 1)) is None


def test_tracks_of_one_person_are_joined_and_people_seen_together_are_not():
    def track(gallery: Appearance, start: int, end: int, x: float) -> Track:
        times = [Fraction(n, 5) for n in range(start, end)]
        return Track([Sighting(time, np.array([x, 0, x + 50, 50.0])) for time in times], [gallery], size=50.0)

    finder = PeopleFinder(None)
    finder._samples = 20
    finder._done = [track(ANNA, 10, 20, 0), track(ANNA, 0, 5, 100), track(BEN, 0, 5, 0), track(ANNA, 0, 1, 300)]
    found = finder.people()
    assert [(person.name, len(person.tracks)) for person in found] == [("person1", 1), ("person2", 2)]
    assert found[1].gallery == [ANNA, ANNA]
    finder._done = [track(ANNA, 0, 5, 0), track(ANNA, 2, 8, 100)]  # twins, side by side
    assert len(finder.people()) == 2


@pytest.fixture
def two(tmp_path, detector, monkeypatch):
    """A video of 2 s: two people side by side, later one alone."""

    def draw(index: int) -> np.ndarray:
        if index < 25:
            return draw_scene(((10, 0), (170, 0)), width=2 * WIDTH)
        return draw_scene(((100, 0),), (220, 210, 150), width=2 * WIDTH)

    class Lent:
        def __getattr__(self, name):
            return getattr(detector, name)

        def close(self) -> None:
            pass

    detector.reset()
    monkeypatch.setattr(people, "create_detector", lambda *_, **__: Lent())
    return clip(tmp_path / "two.mp4", 50, draw)


def test_people_of_a_video(two):
    found = find_people(two)
    spans = [[(float(track.sightings[0].time), float(track.sightings[-1].time)) for track in item.person.tracks]
             for item in found]  # fmt: skip
    assert len(found) == 2 and sorted(len(span) for span in spans) == [1, 2]  # equal faces: the cut rejoins one of them
    assert people_strip(found).shape == (204, 320, 3)
    assert found[0].describe()["name"] == "person1" and found[0].describe()["sync_distance"] is None


def test_faces_by_name_and_by_place_at_a_time(two):
    with open_video(two) as source:
        first, second, place, plain = resolve_faces(["person1", "person2", "235,60@0.6", "left"], source)
        assert (first.index, second.index, plain) == (0, 1, "left")
        assert place.index == 1 and place.kind == "person" and len(place.people) == 2
        assert resolve_faces(["left", "3,4"], source) == ["left", "3,4"]
        with pytest.raises(UserError, match="no person3, only person1 to person2"):
            resolve_faces(["person3"], source)
        with pytest.raises(UserError, match="no face at 9 s"):
            resolve_faces(["10,10@9"], source)
        with pytest.raises(UserError, match="no audio to find the speaker by"):
            resolve_faces(["speaker"], source)


def test_the_likely_speaker():
    def found(number: int, distance: float | None, count: int = 1) -> FoundPerson:
        sightings = [Sighting(Fraction(0), np.zeros(4))] * count
        return FoundPerson(Person(number, [Track(sightings)]), distance)

    assert likely_speaker([found(1, 1.2, 9), found(2, 0.7), found(3, None, 9)]).person.number == 2
    assert likely_speaker([found(1, None, 1), found(2, None, 5)]).person.number == 2


def test_the_command(two, tmp_path, capsys):
    assert command.main([str(two), "--strip", str(tmp_path / "strip.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["person1", "person2"] and (tmp_path / "strip.png").is_file()
    assert command.main([str(two), "--strip", str(tmp_path / "strip.txt")]) == 1
    assert ".jpg or .png" in capsys.readouterr().err
