from pathlib import Path

import pytest

from latentsync.utils.errors import UserError
from tools.prepare_faces import HELD_OUT_PER_PERSON, person_of, select_clips, spread


def fill(folder: Path, **counts: int) -> Path:
    for person, count in counts.items():
        for index in range(count):
            (folder / f"{person}_{index:03d}.mp4").touch()
    return folder


def test_what_is_judged_by_is_never_trained_on(tmp_path):
    folder = fill(tmp_path, anna=100, bert=3, carl=2)
    chosen = select_clips(folder, ["carl_*", "bert_001"], 10)
    assert not set(chosen.training) & set(chosen.held_out)
    people = [person_of(path) for path in chosen.training]
    assert {person: people.count(person) for person in people} == {"anna": 10, "bert": 2}
    people = [person_of(path) for path in chosen.held_out]
    assert {person: people.count(person) for person in people} == {"anna": HELD_OUT_PER_PERSON, "bert": 1, "carl": 2}
    assert chosen == select_clips(folder, ["carl_*", "bert_001"], 10)


def test_clips_are_taken_from_all_over_and_others_ignored(tmp_path):
    assert spread(list(range(10)), 4) == [0, 3, 6, 9] and spread([1, 2], 5) == [1, 2] and spread([], 3) == []
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="no videos or pictures"):
        select_clips(tmp_path, [], 5)
