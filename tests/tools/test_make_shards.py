"""Shards: the same samples as from single files, from a folder and from an object store; WebDataset reads them too."""

import importlib.util
import json

import pytest

from latentsync.config.sections import DataSection
from latentsync.data.audio import MelReader
from latentsync.data.file_lists import open_clips
from latentsync.data.sampler import SampleId, StepBatchSampler
from latentsync.data.syncnet_dataset import SyncNetDataset
from tests.data.conftest import NUM_FRAMES, SIDE, audio, clips  # noqa: F401  (fixtures)
from tools.make_shards import main

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("pyarrow", "webdataset")), reason="needs pyarrow and webdataset"
)


@pytest.fixture
def listing(clips, tmp_path):  # noqa: F811
    path = tmp_path / "train.txt"
    path.write_text("".join(f"{clip.path}\t{clip.person}\n" for clip in clips))
    return path


def dataset(fileslist, folder) -> SyncNetDataset:
    opened = open_clips(DataSection(train_output_dir=str(folder)), str(fileslist), "")
    return SyncNetDataset(opened, MelReader(folder / "mel"), NUM_FRAMES, resolution=SIDE)


@pytest.mark.parametrize("address", ["{folder}/shards", "memory://bucket/shards"])
def test_shards_give_the_same_samples(listing, tmp_path, address):
    target = address.format(folder=tmp_path)
    assert main(["--fileslist", str(listing), "--output_dir", target]) == 0
    files, packed = dataset(listing, tmp_path / "a"), dataset(f"{target}/train.parquet", tmp_path / "b")
    assert {clip.digest for clip in packed.clips} == {clip.digest for clip in files.clips}
    place = {clip.digest: index for index, clip in enumerate(packed.clips)}
    for index, clip in enumerate(files.clips):
        first, second = files[SampleId(index, 5)], packed[SampleId(place[clip.digest], 5)]
        assert (first["frames"] == second["frames"]).all() and (first["audio_samples"] == second["audio_samples"]).all()
    weights = sorted(zip((clip.person for clip in packed.clips), packed.person_weights().tolist(), strict=True))
    assert weights == sorted(zip((clip.person for clip in files.clips), files.person_weights().tolist(), strict=True))


def test_two_ranks_share_the_shards_and_resume(listing, tmp_path):
    assert main(["--fileslist", str(listing), "--output_dir", str(tmp_path / "shards")]) == 0
    packed = dataset(tmp_path / "shards/train.parquet", tmp_path)

    def names(rank: int, start: int) -> list[str]:
        sampler = StepBatchSampler(len(packed), 1, 0, rank=rank, world_size=3, start=start)
        return [packed[sample]["video_path"] for sample in sampler.batch(start)]

    epoch = [names(rank, 0)[0] for rank in range(3)]
    assert len(set(epoch)) == 3  # every clip once, split over the ranks
    assert names(1, 7) == names(1, 7)


def test_finished_shards_are_kept(listing, tmp_path, monkeypatch):
    words = ["--fileslist", str(listing), "--output_dir", str(tmp_path / "shards"), "--shard_mb", "1"]
    assert main(words) == 0
    monkeypatch.setattr("preprocess.shards._write_tar", lambda *_: pytest.fail("written again"))
    assert main(words) == 0


def test_webdataset_streams_them(listing, tmp_path):
    import webdataset

    assert main(["--fileslist", str(listing), "--output_dir", str(tmp_path / "shards")]) == 0
    shards = sorted(map(str, (tmp_path / "shards").glob("*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert sorted(json.loads(sample["json"])["person"] for sample in samples) == ["anna", "anna", "ben"]
    assert all(b"ftyp" in sample["mp4"][:12] for sample in samples)
