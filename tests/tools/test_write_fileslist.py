"""File lists: every clip once, relative where possible, people in one list only."""

from pathlib import Path

import pytest

from latentsync.data.clips import Clip, read_fileslist
from tools.write_fileslist import find_clips, main, split_by_person


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("anna/1.mp4", "anna/2.MP4", "ben/1.mp4", "cleo/x y.mkv", "cleo/notes.txt", ".part/9.mp4"):
        path = tmp_path / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"clip")
    return tmp_path / "clips"


def run(monkeypatch, *words) -> int:
    monkeypatch.setattr("sys.argv", ["write_fileslist", *map(str, words)])
    return main()


def test_the_reader_reads_the_list(folder, monkeypatch, tmp_path):
    listing = folder / "train.txt"
    assert run(monkeypatch, "--input_dir", folder, folder / "anna", "--output", listing) == 0
    lines = ["anna/1.mp4\tanna", "anna/2.MP4\tanna", "ben/1.mp4\tben", "cleo/x y.mkv\tcleo"]
    assert listing.read_text().splitlines() == lines
    assert all(clip.path.is_file() for clip in read_fileslist(listing))
    elsewhere = tmp_path / "lists" / "train.txt"
    assert run(monkeypatch, "--input_dir", folder, "--output", elsewhere) == 0
    assert read_fileslist(elsewhere) == read_fileslist(listing)
    assert elsewhere.read_text().startswith(str(folder / "anna"))
    assert [path.name for path in elsewhere.parent.iterdir()] == ["train.txt"]


def test_a_person_is_in_one_list_only(folder, monkeypatch):
    train, val = folder / "train.txt", folder / "val.txt"
    assert run(monkeypatch, "--input_dir", folder, "--output", train, "--val_output", val) == 0
    trained, validated = read_fileslist(train), read_fileslist(val)
    assert len(trained) + len(validated) == 4
    assert not {clip.person for clip in trained} & {clip.person for clip in validated}


def test_the_split_depends_on_names_only():
    clips = [Clip(Path(f"{number}.mp4"), f"person {number // 2}") for number in range(400)]
    train, val = split_by_person(clips, 0.1)
    assert 20 <= len(val) <= 60
    more = [Clip(Path("n.mp4"), "newcomer"), *reversed(clips)]
    people = {clip.person for clip in val}
    assert {clip.person for clip in split_by_person(more, 0.1)[1]} - {"newcomer"} == people
    assert len({clip.person for clip in split_by_person(clips[:4], 0.99)[1]}) == 1


def test_people_by_pattern(folder):
    assert {clip.person for clip in find_clips([folder], r"^(\w)\w*/")} == {"a", "b", "c"}
    assert {clip.person for clip in find_clips([folder], r"(x)?(?P<person>^\w+)")} == {"anna", "ben", "cleo"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input_dir", "{}/none"], "no such folder"),
        (["--input_dir", "{}/.part"], None),
        (["--input_dir", "{}/empty"], "no clips found"),
        (["--input_dir", "{}", "--person_pattern", "("], "not a valid regular expression"),
        (["--input_dir", "{}", "--person_pattern", "zoe"], "not found in"),
        (["--input_dir", "{}", "--person_pattern", "x*"], "names nobody in"),
        (["--input_dir", "{}/anna", "--val_output", "{}/val.txt"], "needs two"),
        (["--input_dir", "{}", "--val_output", "{}/train.txt"], "the same file"),
        (["--input_dir", "{}", "--val_share", "1"], "between 0 and 1"),
    ],
)
def test_errors_are_reported_and_nothing_is_written(folder, monkeypatch, capsys, words, message):
    (folder / "empty").mkdir()
    listing = folder / "train.txt"
    code = run(monkeypatch, *[word.format(folder) for word in words], "--output", listing)
    assert code == (1 if message else 0)
    assert (message or "") in capsys.readouterr().err
    assert listing.exists() == (message is None)


def test_names_that_a_list_cannot_hold_are_refused(folder, monkeypatch, capsys):
    (folder / "anna" / "tab\there.mp4").write_bytes(b"clip")
    listing = folder / "train.txt"
    listing.write_text("old")
    assert run(monkeypatch, "--input_dir", folder, "--output", listing) == 1
    assert "rename the file" in capsys.readouterr().err
    assert listing.read_text() == "old"
