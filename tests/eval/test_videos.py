"""Videos of a folder, and messages about them."""

import os

import pytest

from eval.videos import find_videos
from latentsync.utils.errors import UserError, one_line


def test_hidden_files_and_circular_links_are_skipped(tmp_path):
    for name in (".hidden", "sub"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.MP4").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "z.mkv").touch()
    assert find_videos(tmp_path) == [tmp_path / "sub" / "a.MP4", tmp_path / "z.mkv"]


def test_missing_folders_and_videos_are_reported(tmp_path):
    with pytest.raises(UserError, match="no videos in it"):
        find_videos(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        find_videos(tmp_path / "none")


def test_any_file_name_makes_one_line_that_can_be_printed():
    name = os.fsdecode(b"a\nb\xff.mp4")
    assert one_line(name).encode("utf-8") == rb"a\nb\udcff.mp4"
