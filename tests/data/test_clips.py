"""The clip reader: its results, and errors about unusable clips."""

import numpy as np
import pytest

from latentsync.data.clips import (
    Clip,
    examine_clips,
    probe_clip,
    read_fileslist,
    read_frames,
    to_pixel_values,
)
from latentsync.utils.errors import UserError
from tests.data.conftest import CLIP_FRAMES, SIDE, numbers
from tests.media.synthetic import write_clip


def test_file_lists(tmp_path):
    listing = tmp_path / "list.txt"
    listing.write_text("p/a.mp4\tanna\n\nq/b c.mp4\n", encoding="utf-8")
    assert read_fileslist(listing) == [Clip(tmp_path / "p/a.mp4", "anna"), Clip(tmp_path / "q/b c.mp4", "q")]
    assert read_fileslist(listing, tmp_path / "data")[0].path == tmp_path / "data" / "p/a.mp4"
    listing.write_text("\n")
    with pytest.raises(UserError, match="empty"):
        read_fileslist(listing)
    listing.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        read_fileslist(listing)
    with pytest.raises(UserError, match="no such file list"):
        read_fileslist(tmp_path / "none.txt")


def test_frames_are_those_asked_for(clips):
    frames = read_frames(clips[0].path, np.array([7, 3, 29]), resolution=SIDE, fps=25)
    assert frames.dtype == np.uint8 and frames.shape == (3, SIDE, SIDE, 3)
    assert numbers(to_pixel_values(frames)) == [7, 3, 29]
    assert len(read_frames(clips[0].path)) == CLIP_FRAMES


def test_clips_that_are_not_as_asked_for_are_refused_with_the_way_out(clips, tmp_path):
    with pytest.raises(UserError, match="64x64 pixels where data.resolution asks for 32x32; process it"):
        read_frames(clips[0].path, np.array([0]), resolution=32)
    with pytest.raises(UserError, match="25 frames/s where data.video_fps is 30; process it"):
        read_frames(clips[0].path, np.array([0]), fps=30)
    with pytest.raises(UserError, match="cannot be read as a clip"):
        read_frames(clips[0].path, np.array([CLIP_FRAMES]))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match="cannot be read as a clip"):
        read_frames(tmp_path / "text.mp4")


def test_examined_clips_know_their_length(clips):
    assert [clip.num_frames for clip in examine_clips(clips, min_frames=8, resolution=SIDE)] == [CLIP_FRAMES] * 3
    info = probe_clip(clips[0].path)
    assert (info.width, info.height, info.fps, info.has_audio) == (SIDE, SIDE, 25.0, True)


def test_a_container_without_an_index_is_counted(tmp_path):
    assert probe_clip(write_clip(tmp_path / "clip.mkv", 9, size=(SIDE, SIDE))).num_frames == 9


def test_short_and_unreadable_clips_are_left_out_counted_and_named(clips, tmp_path, caplog):
    short = Clip(write_clip(tmp_path / "short.mp4", 5, size=(SIDE, SIDE), tone_seconds=0.2), "anna")
    text = Clip(tmp_path / "text.mp4", "anna")
    text.path.write_text("no video")
    assert len(examine_clips([short, *clips, text], min_frames=8)) == 3
    assert f"1 clips are shorter than 8 frames and are left out: {short.path}" in caplog.text
    assert f"1 clips cannot be read and are left out: {text.path}" in caplog.text
    with pytest.raises(UserError, match="none of the 2 clips can be used"):
        examine_clips([short, text], min_frames=8)


def test_clips_that_are_wrong_stop_the_run_before_it_starts(clips, tmp_path):
    with pytest.raises(UserError, match="1 of 4 clips of the list do not exist"):
        examine_clips([*clips, Clip(tmp_path / "none.mp4", "anna")], min_frames=8)
    with pytest.raises(UserError, match=r"data.resolution asks for 128x128.*3 of 3 clips"):
        examine_clips(clips, min_frames=8, resolution=128)
    fast = Clip(write_clip(tmp_path / "fast.mp4", 20, fps=30, size=(SIDE, SIDE), tone_seconds=0.5), "anna")
    with pytest.raises(UserError, match=r"fast.mp4: has 30 frames/s.*1 of 4 clips"):
        examine_clips([*clips, fast], min_frames=8)
    mute = Clip(write_clip(tmp_path / "mute.mp4", 20, size=(SIDE, SIDE)), "anna")
    with pytest.raises(UserError, match="mute.mp4: has no audio"):
        examine_clips([mute], min_frames=8)
    assert examine_clips([mute], min_frames=8, audio=False)
