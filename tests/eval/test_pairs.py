"""Lists of pairs and of methods: names of any kind, and errors in a list."""

import pytest

from eval.methods import GROUND_TRUTH, parse_methods
from eval.pairs import Pair, read_pairs, speaks_own_audio
from latentsync.utils.errors import UserError
from tests.media.synthetic import click_track, tone, write_audio, write_clip


def written(tmp_path, text: str):
    path = tmp_path / "list.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_rows_are_relative_to_the_list_and_ids_have_defaults(tmp_path):
    pairs = read_pairs(written(tmp_path, '\ufeffvideo,audio,id\nä b.mp4,,\n"c,d.mp4",/v/x.wav,my id\n'))
    assert pairs[0] == Pair("ä b", tmp_path / "ä b.mp4", None)
    assert pairs[1].id == "my id" and pairs[1].video.name == "c,d.mp4" and str(pairs[1].audio) == "/v/x.wav"
    assert pairs[0].driving_audio == pairs[0].video and pairs[1].driving_audio == pairs[1].audio


def test_ids_have_no_line_breaks(tmp_path):
    (pair,) = read_pairs(written(tmp_path, 'video,audio\n"a\nb.mp4","c\td.wav"\n'))
    assert pair.video.name == "a\nb.mp4" and pair.id == "a_b__c_d"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must name the columns"),
        ("video,audio,id\n", "has no rows"),
        ("file\na.mp4\n", "it holds file"),
        ("video,extra\na.mp4,1\n", "must name the columns"),
        ("video,audio,id\n,b.wav,x\n", "row 1 has no video"),
        ("video,audio,id\na,b,c,d\n", "more cells than columns"),
        ("video\na.mp4\na.mp4\n", "two rows have the id 'a'"),
        ("video,audio,id\na.mp4,,../up\n", "cannot name files"),
        ("video,audio,id\na.mp4,,.hidden\n", "cannot name files"),
        ("video,audio,id\na.mp4,," + "x" * 101 + "\n", "cannot name files"),
    ],
)
def test_invalid_lists(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_pairs(written(tmp_path, text))


def test_unreadable_lists(tmp_path):
    (tmp_path / "latin.csv").write_bytes(b"video\n\xe4.mp4\n")
    (tmp_path / "nul.csv").write_bytes(b"video\na\0b.mp4\n")
    for name, message in (("none.csv", "no such list"), ("latin.csv", "cannot be read"), ("", "cannot be read")):
        with pytest.raises(UserError, match=message):
            read_pairs(tmp_path / name)


def test_a_separate_file_of_the_same_audio_counts_as_own(tmp_path):
    video = write_clip(tmp_path / "v.mp4", 25, tone_seconds=1.0)
    same = write_audio(tmp_path / "same.wav", tone(16000, 1.0))
    other = write_audio(tmp_path / "other.wav", click_track(16000, 1.0, [0.1, 0.5]))
    silent = write_clip(tmp_path / "silent.mp4", 5)
    assert speaks_own_audio(Pair("a", video)) and speaks_own_audio(Pair("a", video, video))
    assert speaks_own_audio(Pair("a", video, same))
    assert not speaks_own_audio(Pair("a", video, other)) and not speaks_own_audio(Pair("a", silent, same))
    with pytest.raises(UserError, match="no such audio"):
        speaks_own_audio(Pair("a", video, tmp_path / "none.wav"))


def test_methods_are_folders_or_models_and_the_ground_truth_comes_first(tmp_path):
    folder = tmp_path / "wav2lip results"
    folder.mkdir()
    (folder / "a.mov").touch()
    words = [str(folder), f"other={folder}", "ours=pipeline:embedded"]
    truth, first, second, third = parse_methods(words, tmp_path / "results")
    assert truth.name == GROUND_TRUTH and truth.is_ground_truth
    assert (first.name, second.name, first.model) == ("wav2lip results", "other", None)
    assert (third.model, third.folder) == ("embedded", tmp_path / "results" / "ours")
    pair = Pair("a", tmp_path / "video.mp4")
    assert truth.result(pair) == pair.video and first.result(pair) == folder / "a.mov"
    (folder / "a.mp4").touch()
    with pytest.raises(UserError, match="several results for 'a'"):
        first.result(pair)
    with pytest.raises(UserError, match="no result for 'b'"):
        first.result(Pair("b", pair.video))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no such folder of results"),
        (["x=nowhere"], "no such folder of results"),
        (["a/b=pipeline:embedded"], "cannot name a method"),
        (["=pipeline:embedded"], "cannot name a method"),
        (["x=pipeline:unknown"], "there is no model 'unknown'; choose one of"),
        (["x=pipeline:embedded", "x=pipeline:embedded"], "two methods are named 'x'"),
        (["ground truth=pipeline:embedded"], "two methods are named 'ground truth'"),
    ],
)
def test_invalid_methods(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        parse_methods(words, tmp_path)
