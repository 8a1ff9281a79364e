"""The evaluation on clips of the demo's portrait, with a tiny model and a tiny SyncNet."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from latentsync.config.syncnet import load_syncnet_config
from latentsync.loading import ModelPaths, load_pipeline
from latentsync.metrics.sync import SyncScorer, offset_score
from latentsync.models.stable_syncnet import StableSyncNet
from latentsync.models.syncnet_config import StableSyncNetConfig
from latentsync.utils.checkpoints import save_checkpoint
from latentsync.utils.errors import UserError
from latentsync.utils.registry import PROJECT_ROOT
from preprocess.write import write_faces
from tests.conformance.seeded import fill_
from tests.tiny_model import RESOLUTION, TinyFiles
from tools import evaluate_embedded
from tools.evaluation import evaluation, measures
from tools.evaluation.clips import HeldOutClip, load_clip, other_voices, read_held_out, spread
from tools.evaluation.measures import measure_reconstruction, measure_syncnet, pad_with_silence, sync_values
from tools.evaluation.report import Figure, as_json, mean, ratio, silence_figures, sync_figures, syncnet_figures
from tools.evaluation.synthesis import Talker, pingpong, reference_start

FRAMES, RATE = 34, 16000
PEOPLE = ("ann_1", "bob_1", "eve_1")
SYNCNET = {
    "model": {
        "audio_encoder": {
            "in_channels": 1,
            "block_out_channels": [32] * 6 + [64],
            "downsample_factors": [[2, 1], 2, 2, 1, 2, 2, [2, 3]],
        },
        "visual_encoder": {
            "in_channels": 48,
            "block_out_channels": [32] * 5 + [64],
            "downsample_factors": [[1, 2], 2, 2, 2, 2, 2],
        },
    },
    "data": {"resolution": RESOLUTION},
}


class Distance(nn.Module):
    """Takes the place of LPIPS."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).abs().mean(dim=(1, 2, 3), keepdim=True)


@pytest.fixture(scope="module")
def clips_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people of one clip each: the portrait, brighter and darker with time, and noise for a voice."""
    folder = tmp_path_factory.mktemp("clips")
    portrait = cv2.cvtColor(cv2.imread(str(PROJECT_ROOT / "assets" / "demo_portrait.png")), cv2.COLOR_BGR2RGB)
    face = cv2.resize(portrait, (RESOLUTION, RESOLUTION), interpolation=cv2.INTER_AREA)
    for number, name in enumerate(PEOPLE):
        rng = np.random.default_rng(number)
        light = 0.7 + 0.3 * rng.random((FRAMES, 1, 1, 1))
        wave = 0.2 * rng.standard_normal(FRAMES * RATE // 25).clip(-3, 3)
        (folder / name[:3]).mkdir()
        write_faces(folder / name[:3] / f"{name}.mp4", (face * light).astype(np.uint8), wave)
    (folder / "train.txt").write_text("".join(f"{name[:3]}/{name}.mp4\t{name[:3]}\n" for name in PEOPLE))
    marks = zip(PEOPLE, ("seen", "unseen", "unseen"), strict=True)
    (folder / "held_out.txt").write_text(
        "".join(f"{name[:3]}/{name}.mp4\t{name[:3]}\t{mark}\n" for name, mark in marks)
    )
    return folder


@pytest.fixture(scope="module")
def talker(tiny_files: TinyFiles) -> Talker:
    paths = ModelPaths(
        tiny_files.unet, tiny_files.unet_config, tiny_files.vae, tiny_files.whisper, tiny_files.scheduler_config
    )
    pipeline = load_pipeline(paths, "cpu")
    pipeline.num_inference_steps, pipeline.guidance_scale = 1, 1.0
    return Talker(pipeline)


@pytest.fixture(scope="module")
def syncnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Config and checkpoint of a tiny SyncNet."""
    folder = tmp_path_factory.mktemp("syncnet")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SYNCNET))
    config = load_syncnet_config(folder / "tiny.yaml", StableSyncNetConfig)
    save_checkpoint(folder / "syncnet.pt", fill_(StableSyncNet(config.model)).state_dict(), 7)
    return folder / "tiny.yaml", folder / "syncnet.pt"


def held(names: str) -> list[HeldOutClip]:
    """a1 is the first clip of a; capital letters are seen people."""
    return [HeldOutClip(Path(f"{name}.mp4"), name[0], name[0].isupper()) for name in names.split()]


def test_list_says_who_is_seen(clips_dir, tmp_path):
    clips = read_held_out(clips_dir / "held_out.txt", tmp_path / "none.txt")
    assert [(clip.name, clip.person, clip.seen) for clip in clips] == [
        ("ann_1", "ann", True),
        ("bob_1", "bob", False),
        ("eve_1", "eve", False),
    ]
    (tmp_path / "train.txt").write_text("bob/bob_9.mp4\tbob\n")
    clips = read_held_out(clips_dir / "train.txt", tmp_path / "train.txt")
    assert [clip.seen for clip in clips] == [False, True, False]


def test_unfit_lists_are_refused(clips_dir, tmp_path):
    with pytest.raises(UserError, match="not marked seen or unseen"):
        read_held_out(clips_dir / "train.txt", tmp_path / "none.txt")
    with pytest.raises(UserError, match="ann_1.mp4: is in .* as well .3 such clips"):
        read_held_out(clips_dir / "held_out.txt", clips_dir / "train.txt")
    (tmp_path / "held_out.txt").write_text("a.mp4\ta\tperhaps\n")
    with pytest.raises(UserError, match="third column must be seen or unseen, not 'perhaps'"):
        read_held_out(tmp_path / "held_out.txt", tmp_path / "none.txt")


def test_people_take_turns_unseen_first():
    clips = held("A1 A2 A3 b1 c1 c2")
    assert [clip.path.stem for clip in spread(clips, 0)] == ["b1", "c1", "A1", "c2", "A2", "A3"]
    assert len(spread(clips, 4)) == 4


def test_voices_are_those_of_other_people():
    clips = held("a1 a2 b1 c1")
    assert [clip.path.stem for clip in other_voices(clips, 1, 2)] == ["b1", "c1"]
    assert [clip.path.stem for clip in other_voices(clips, 3, 9)] == ["a1", "a2", "b1"]
    with pytest.raises(UserError, match="only 1 held-out clips of other people"):
        other_voices(held("a1 a2 b1"), 0, 4)


@pytest.mark.parametrize("total", [32, 34, 75, 100])
def test_reference_never_overlaps_its_run(total):
    for start in range(0, total, 16):
        run = min(16, total - start)
        begin = reference_start(start, run, total)
        assert 0 <= begin and begin + run <= total and abs(begin - start) >= run


def test_clip_without_room_for_a_reference_is_refused():
    with pytest.raises(UserError, match="no reference run"):
        reference_start(0, 16, 31)


def test_pingpong_turns_at_the_ends():
    assert pingpong(torch.arange(3.0), 8).tolist() == [0, 1, 2, 2, 1, 0, 0, 1]


def test_driving_changes_the_masked_part_only(talker, clips_dir):
    clip = load_clip(read_held_out(clips_dir / "held_out.txt", Path("none"))[0], RESOLUTION)
    made = talker.drive(clip.faces, clip.wave)
    kept = talker.mask[0, 0] == 1
    assert made.shape == clip.faces.shape
    assert torch.equal(made[..., kept], clip.faces[..., kept])
    assert not torch.allclose(made[..., ~kept], clip.faces[..., ~kept], atol=0.05)


def test_reconstruction_is_held_against_the_pasted_reference(talker, clips_dir):
    clip = load_clip(read_held_out(clips_dir / "held_out.txt", Path("none"))[0], RESOLUTION)
    values, pictures = measure_reconstruction(talker, Distance(), clip)
    assert set(values) == set(pictures) == {"model", "pasted", "codec"}
    hidden = talker.mask[0, 0] == 0
    faces, pasted = clip.faces, pictures["pasted"]
    for frame in (0, 20, 33):
        begin = 16 * (frame // 16)
        reference = reference_start(begin, min(16, FRAMES - begin), FRAMES) + frame - begin
        assert torch.equal(pasted[frame][:, hidden], faces[reference][:, hidden])
    assert values["pasted"]["psnr"] > values["model"]["psnr"]  # a portrait in other light against random weights


def test_other_face_size_is_refused(clips_dir):
    with pytest.raises(UserError, match="ann_1.mp4: is 64x64 pixels, the model works on 128x128"):
        load_clip(read_held_out(clips_dir / "held_out.txt", Path("none"))[0], 128)


def test_figures_know_their_targets():
    entry = {"person": "a", "windows": 50, "confidence": 1.0}
    real = [
        {**entry, "seen": True, "preference": 1.0, "corrected_preference": 1.0, "offset": -1},
        {**entry, "seen": False, "preference": 0.9, "corrected_preference": 0.95, "offset": 2},
    ]
    seen, _, unseen, corrected, offset = syncnet_figures(real)
    assert (corrected.value, corrected.verdict) == (pytest.approx(0.95), "")
    assert (seen.verdict, unseen.verdict, offset.value) == ("met", "MISSED", 0.5)
    assert unseen.cells[2:4] == ("90.0 %", ">= 93.0 %")
    values = {"confidence": 0.9, "offset": 1}
    kinds = {"real": {**values, "confidence": 1.0}, "self-driven": values, "other voice": values}
    results = [{"person": "a", "sync": {"ours": {**kinds, "shuffled": {"confidence": 0.3, "offset": 5}}}}]
    shown = {figure.name: figure for figure in sync_figures(results, "ours")}
    assert shown["other voice / real"].value == pytest.approx(0.9)
    assert shown["other voice / shuffled"].verdict == "met"
    opening = {"silence": 0.01, "speech": 0.04, "real_speech": 0.05, "input_silence": 0.02}
    unseen = {"silence": float("nan"), "speech": 0.1, "real_speech": 0.2, "input_silence": 0.2}
    silence, moved = silence_figures([{"opening": opening}, {"opening": unseen}, {}])
    assert (silence.value, silence.verdict, silence.note[:12]) == (0.25, "MISSED", "1 of 2 clips")
    assert moved.value == pytest.approx(0.8)


class Embeds:
    """A scorer whose windows of picture and sound are what it is given."""

    def __init__(self, vision: torch.Tensor, audio: torch.Tensor):
        self.vision, self.audio = vision, audio

    def embed(self, faces, wave):
        return self.vision, self.audio

    def score(self, faces, wave):
        return offset_score(self.vision, self.audio)


def shifted(late: int, noise: float) -> Embeds:
    """40 windows whose sound comes `late` frames too late, found through some noise."""
    torch.manual_seed(0)
    moments = torch.nn.functional.normalize(torch.rand(60, 16), dim=1)
    heard = torch.nn.functional.normalize(moments + noise * torch.rand(60, 16), dim=1)
    return Embeds(moments[10:50], heard[10 - late : 50 - late])


def test_recordings_are_put_in_sync_by_another_syncnet(clips_dir):
    clip = load_clip(read_held_out(clips_dir / "held_out.txt", Path("none"))[0], RESOLUTION)
    values = measure_syncnet(shifted(3, 0.1), clip, shifted(3, 0.2))
    assert (values["offset"], values["reference_offset"], values["aligned_offset"]) == (3, 3, 0)
    assert values["preference"] < 0.8 and values["aligned_preference"] == 1.0
    far = measure_syncnet(shifted(3, 0.1), clip, shifted(8, 0.2))
    assert (far["reference_offset"], far["aligned_offset"]) == (8, 3)  # data processing moves no sound so far
    assert far["aligned_preference"] == values["preference"]
    wrong = measure_syncnet(shifted(0, 0.1), clip, shifted(3, 0.2))
    assert wrong["aligned_offset"] == -3 and wrong["aligned_preference"] < 0.8 < wrong["preference"]
    assert "aligned_offset" not in measure_syncnet(shifted(3, 0.1), clip)


def test_figures_of_recordings_put_in_sync():
    entry = {"person": "a", "windows": 50, "preference": 0.5, "corrected_preference": 0.5, "offset": 2}
    real = [
        {**entry, "seen": True, "aligned_preference": 1.0, "aligned_offset": 0, "reference_offset": 2},
        {**entry, "seen": False, "aligned_preference": 0.92, "aligned_offset": 2, "reference_offset": 0},
    ]
    figures = {figure.name: figure for figure in syncnet_figures(real)}
    assert figures["in-sync window preferred, seen people, put in sync"].verdict == "met"
    assert figures["in-sync window preferred, unseen people, put in sync"].verdict == "MISSED"
    offset = figures["offset within 1 frame, put in sync"]
    assert (offset.value, offset.verdict) == (0.5, "MISSED") and "1 of 2 clips" in offset.note
    assert len(syncnet_figures([{**entry, "seen": True}])) == 5


def test_what_could_not_be_measured_is_said():
    assert mean([float("nan")]) is None and ratio(1.0, 0.0) is None
    assert [figure.verdict for figure in silence_figures([])] == ["not measured", "not measured"]
    content = json.loads(as_json([Figure("a", "b", None)], {"clips": [{"x": float("inf")}]}))
    assert content["figures"][0]["value"] is None and content["clips"][0]["x"] is None


def test_shuffled_confidence_is_the_mean_over_voices():
    from latentsync.metrics.sync import SyncScore

    flat, peaked = SyncScore(np.array([1.0, 1.0, 1.0])), SyncScore(np.array([1.0, 0.6, 1.0]))
    assert sync_values({"shuffled": [flat, peaked]})["shuffled"]["confidence"] == pytest.approx(0.2)


def test_speech_lies_between_silences():
    padded = pad_with_silence(np.ones(10, np.float32))
    assert len(padded) == 48010 and padded[24000:24010].all() and not padded[:24000].any()


def test_scorer_is_loaded_strictly(syncnet, tmp_path):
    config, weights = syncnet
    assert SyncScorer.from_pretrained(config, weights).resolution == RESOLUTION
    save_checkpoint(tmp_path / "other.pt", {"a": torch.zeros(1)})
    with pytest.raises(UserError, match="other.pt"):
        SyncScorer.from_pretrained(config, tmp_path / "other.pt")


class Meter:
    """Takes the place of MouthMeter: open in every other frame."""

    def openings(self, faces: np.ndarray) -> np.ndarray:
        return np.resize([0.01, 0.05], len(faces))

    def close(self) -> None:
        pass


@pytest.fixture
def arguments(clips_dir, syncnet, tmp_path, talker, media, monkeypatch) -> list[str]:
    """Words of a command line that measures everything on one clip; nothing large is run."""
    monkeypatch.setattr(evaluation, "MouthMeter", Meter)
    monkeypatch.setattr(measures, "SILENCE_SECONDS", 0.4)
    monkeypatch.setattr(evaluate_embedded, "load_pipeline", lambda *_: talker.pipeline)
    monkeypatch.setattr(evaluate_embedded, "load_perceptual", lambda: (Distance(), "LPIPS (stand-in)"))
    config, weights = syncnet
    options = {
        "clips_dir": clips_dir,
        "training_list": tmp_path / "none.txt",
        "output_dir": tmp_path / "report",
        "syncnet_config": config,
        "syncnet_ckpt": weights,
        "speech": media / "voice.wav",
        "max_clips": 1,
    }
    return [f"--{name}={value}" for name, value in options.items()]


def test_command_measures_and_writes_everything(arguments, tmp_path):
    assert evaluate_embedded.main(arguments) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    sections = {figure["section"] for figure in report["figures"]}
    assert sections == {
        "SyncNet",
        "sync, scored by our SyncNet",
        "mouth, self-reconstruction",
        "mouth, silence",
    }
    assert [entry["clip"] for entry in report["syncnet"]] == list(PEOPLE)
    (entry,) = report["clips"]
    assert (entry["clip"], entry["voice"], entry["wrong_voices"]) == ("bob_1", "eve_1", ["ann_1"])
    assert entry["opening"]["speech"] == pytest.approx(0.02, abs=0.005)
    table = (tmp_path / "report" / "report.md").read_text()
    assert "| bob_1 | eve_1 | unseen |" in table and "LPIPS (stand-in)" in table
    assert sorted(path.name for path in (tmp_path / "report" / "sheets").iterdir()) == [
        "bob_1.png",
        "bob_1_silence.png",
    ]
    assert cv2.imread(str(tmp_path / "report" / "sheets" / "bob_1.png")).shape == (5 * 192, 10 * 192, 3)
    assert len(list((tmp_path / "report" / "clips").iterdir())) == 6
    assert (tmp_path / "report" / "offsets" / "bob_1.png").is_file()


def test_command_measures_only_what_is_asked_for(arguments, tmp_path):
    assert evaluate_embedded.main([*arguments, "--sections", "syncnet"]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert len(report["figures"]) == 5 and report["clips"] == []


def test_command_takes_another_syncnet_to_put_recordings_in_sync(arguments, syncnet, tmp_path):
    config, weights = syncnet
    reference = tmp_path / "reference.yaml"
    reference.write_text(f"base: {config}\nckpt: {{inference_ckpt_path: {weights}}}\n")
    assert evaluate_embedded.main([*arguments, "--sections", "syncnet", f"--sync_reference={reference}"]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert len(report["figures"]) == 8
    assert all(entry["aligned_offset"] in (0, entry["offset"]) for entry in report["syncnet"])  # the same network


def test_command_says_what_is_wrong(arguments, capsys):
    assert evaluate_embedded.main([*arguments, "--syncnet_ckpt=missing.pt"]) == 1
    assert "missing.pt" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate_embedded.main([*arguments, "--max_frames=20"])
