"""Indexes of clips, from which a trainer starts without opening the clips again."""

import importlib.util
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from latentsync.config.sections import DataSection
from latentsync.data import file_lists
from latentsync.data.clips import Clip, examine_clips, read_headers
from latentsync.data.file_lists import open_clips, write_parquet_list
from latentsync.data.table import Table, write_columns, write_table
from latentsync.data.unet_dataset import UNetDataset
from latentsync.faces.mask import load_mask
from latentsync.utils.errors import UserError
from latentsync.utils.paths import PROJECT_ROOT
from tests.data.conftest import CLIP_FRAMES, SIDE

parquet = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")


@pytest.fixture
def data(tmp_path):
    return DataSection(train_output_dir=str(tmp_path / "out"))


def write_text_list(path, clips):
    path.write_text("".join(f"{clip.path}\t{clip.person}\n" for clip in clips))
    return str(path)


def test_a_text_list_is_read_once(clips, data, tmp_path, monkeypatch):
    listing = write_text_list(tmp_path / "train.txt", clips)
    first = open_clips(data, listing, "")
    assert [clip.num_frames for clip in first] == [CLIP_FRAMES] * 3
    assert [clip.person for clip in first] == ["anna", "anna", "ben"]
    assert first[2] == read_headers([clips[2]], with_digest=True)[0]
    with monkeypatch.context() as patch:
        patch.setattr(file_lists, "read_headers", lambda *_, **__: pytest.fail("read again"))
        assert list(open_clips(data, listing, "")) == list(first)
    write_text_list(tmp_path / "train.txt", clips[:2])
    assert len(open_clips(data, listing, "")) == 2


@parquet
def test_a_parquet_list_needs_no_clip_to_be_opened(clips, data, tmp_path, monkeypatch):
    listing = tmp_path / "train.parquet"
    write_parquet_list(listing, read_headers(clips, with_digest=True))
    monkeypatch.setattr(file_lists, "read_headers", lambda *_, **__: pytest.fail("opened"))
    opened = open_clips(data, str(listing), "")
    assert list(opened) == read_headers(clips, with_digest=True)
    assert len(examine_clips(opened, min_frames=CLIP_FRAMES, resolution=SIDE)) == 3
    with pytest.raises(UserError, match="resolution asks for 32x32"):
        examine_clips(opened, min_frames=8, resolution=32)


@parquet
def test_a_parquet_list_without_headers_is_completed(clips, data, tmp_path):
    listing = tmp_path / "train.parquet"
    write_parquet_list(listing, clips)
    assert [clip.num_frames for clip in open_clips(data, str(listing), "")] == [CLIP_FRAMES] * 3


@parquet
def test_lists_that_are_wrong(clips, data, tmp_path):
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(UserError, match="is not a Parquet list"):
        open_clips(data, str(tmp_path / "text.parquet"), "")
    write_parquet_list(tmp_path / "gone.parquet", [replace(clips[0], path=tmp_path / "gone.mp4", num_frames=9)])
    with pytest.raises(UserError, match="gone.mp4.*do not exist"):
        open_clips(data, str(tmp_path / "gone.parquet"), "")


def test_a_dataset_of_an_index_gives_the_same_items(clips, audio, data, tmp_path):
    listed = UNetDataset(clips, audio, load_mask(SIDE))
    indexed = UNetDataset(open_clips(data, write_text_list(tmp_path / "a.txt", clips), ""), audio, load_mask(SIDE))
    assert indexed.person_weights().tolist() == listed.person_weights().tolist()
    for key in range(3):
        first, second = listed[key], indexed[key]
        assert first["video_path"] == second["video_path"] and first["start_idx"] == second["start_idx"]
        assert (first["gt_pixel_values"] == second["gt_pixel_values"]).all()
        assert (first["audio"] == second["audio"]).all()


def test_tables_are_sequences_that_pickle_by_name(tmp_path):
    clips = [Clip(tmp_path / f"ä {index}.mp4", f"person {index}", index, fps=25.0) for index in range(9)]
    table = write_table(tmp_path / "clips.npy", Clip, clips)
    assert list(table) == clips and table[-1] == clips[-1] and list(table[2:4]) == clips[2:4]
    odd = table.select(table.column("num_frames") % 2 == 1)
    assert list(odd.select(np.array([1, 0]))) == [clips[3], clips[1]]
    assert list(pickle.loads(pickle.dumps(odd))) == clips[1::2]
    assert len(pickle.dumps(table)) < 500
    with pytest.raises(IndexError):
        table[9]
    (tmp_path / "bad.npy").write_bytes(b"bad")
    with pytest.raises(UserError, match="damaged"):
        Table(tmp_path / "bad.npy", Clip)


def test_private_memory_does_not_grow_with_the_clips(tmp_path):
    """A process that opens an index of 200 000 clips and reads some of them keeps no copy of it."""
    count = 200_000
    names = [f"/data/clips/person_{index % 500:03d}/some_source_{index:06d}_0000.mp4" for index in range(count)]
    columns = {"path": names, "person": [name.split("/")[3] for name in names], "num_frames": [125] * count}
    write_columns(tmp_path / "clips.npy", Clip, columns)
    script = """
import sys
from pathlib import Path
from latentsync.data.clips import Clip
from latentsync.data.table import Table

def copied():
    return next(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Anonymous:"))

table, before = Table(Path(sys.argv[1]), Clip), copied()
assert sum(table[index].num_frames for index in range(0, len(table), 100)) == 125 * len(table) // 100
print(copied() - before)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "clips.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT_ROOT, env=os.environ)
    size = (tmp_path / "clips.npy").stat().st_size // 1024
    assert int(done.stdout) < size / 4  # KiB
