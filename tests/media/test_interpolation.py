"""Frame interpolation: exact times, unchanged source frames, cuts, motion; whole files; RIFE's layout."""

import importlib.util
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import torch

from latentsync.media import interpolation
from latentsync.media.frame import VideoFrame
from latentsync.media.frame_rate import FrameRateConverter, is_cut
from latentsync.media.interpolation import RifeInterpolator, change_frame_rate, load_rife, open_interpolator
from latentsync.media.optical_flow import FlowEstimator, FlowInterpolator
from latentsync.media.probe import probe_video
from latentsync.media.reader import VideoReader
from latentsync.utils.errors import UserError
from latentsync.utils.paths import PROJECT_ROOT
from latentsync.utils.progress import Progress
from tests.conformance.seeded import fill_
from tests.media.synthetic import numbers_of, write_clip


class RecordingInterpolator:
    """Interpolates mean gray levels and records its calls."""

    name = "recording"

    def __init__(self):
        self.asked: list[float] = []
        self.around: list[tuple[np.ndarray | None, np.ndarray | None]] = []

    def between(self, first, second, t, before=None, after=None) -> np.ndarray:
        self.asked.append(t)
        self.around.append((before, after))
        level = first.mean() * (1 - t) + second.mean() * t
        return np.full_like(first, round(level))


def texture(seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0, 255, (128, 192, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 4)
    return np.clip((blurred - 127) * 6 + 127, 0, 255).astype(np.uint8)


def shifted(image: np.ndarray, pixels: float) -> np.ndarray:
    matrix = np.float32([[1, 0, pixels], [0, 1, 0]])
    return cv2.warpAffine(image, matrix, image.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def frames_of(levels: list[int]) -> list[VideoFrame]:
    """Images with a gradient, so that neighbors are alike, at given brightness."""
    gradient = np.linspace(0, 60, 64)[None, :, None] + np.zeros((48, 1, 3))
    return [VideoFrame.from_rgb(gradient + level) for level in levels]


def convert(frames: list[VideoFrame], source: Fraction | int, target: Fraction | int):
    recording = RecordingInterpolator()
    converter = FrameRateConverter(recording, Fraction(source), Fraction(target))
    made = [shown for frame in frames for shown in converter.push(frame)] + list(converter.flush())
    assert converter.written == len(made)
    return made, recording.asked


@pytest.mark.parametrize(
    ("source", "target", "count"),
    [
        (25, 50, 20),
        (25, 60, 24),
        (24, 25, 11),
        (25, 100, 40),
        (Fraction(30000, 1001), 60, 21),
        (25, 10, 4),
        (25, 25, 10),
    ],
)
def test_exact_times(source, target, count):
    frames = frames_of([10 * index for index in range(10)])
    made, asked = convert(frames, source, target)
    assert len(made) == count
    for index, frame in enumerate(made):
        time = Fraction(index) * Fraction(source) / Fraction(target)
        if time.denominator == 1:
            assert frame is frames[int(time)]  # untouched
        elif time < 9:
            assert frame.planes[0].mean() == pytest.approx(made[0].planes[0].mean() + 10 * time * 219 / 255, abs=2)
        else:
            assert frame is frames[9]
    assert all(0 < t < 1 for t in asked)


def test_equal_neighbors_and_cuts_are_not_interpolated():
    a, b = VideoFrame.from_rgb(texture(1)), VideoFrame.from_rgb(texture(2))
    assert is_cut(a, b) and not is_cut(a, VideoFrame.from_rgb(shifted(texture(1), 3)))
    same = VideoFrame.from_rgb(texture(1))
    made, asked = convert([a, same, b], 25, 100)
    assert made[:4] == [a] * 4 and made[4:7] == [same, same, b] and not asked


def test_only_the_part_that_moves_is_interpolated():
    scene, patch = cv2.resize(texture(1), (960, 640)), texture(2)[:48, :64]

    def shown(x: int) -> VideoFrame:
        image = scene.copy()
        image[300:348, x : x + 64] = patch
        return VideoFrame.from_rgb(image)

    recording, frames = RecordingInterpolator(), [shown(400 + 2 * index) for index in range(5)]
    converter = FrameRateConverter(recording, Fraction(25), Fraction(50))
    made = [each for frame in frames for each in converter.push(frame)] + list(converter.flush())
    shapes = {part.shape for around in recording.around for part in around if part is not None}
    assert len(shapes) == 1  # the part stays the same while it fits, so that flows are reused
    height, width = shapes.pop()[:2]
    assert 48 <= height < 250 and 66 <= width < 250
    for index, frame in enumerate(made[1:8:2]):
        changed = np.argwhere(frame.planes[0] != frames[index].planes[0])
        assert len(changed) and (changed.min(axis=0) >= (150, 250)).all() and (changed.max(axis=0) < (500, 620)).all()


def test_motion_of_a_part_is_the_same_as_in_the_whole_frame():
    scene = cv2.resize(texture(1), (640, 480))

    def scene_at(x: float) -> np.ndarray:
        image = scene.copy()
        image[180:308, 200:392] = shifted(texture(2), x)
        return image

    first, second = scene_at(0), scene_at(4)
    converter = FrameRateConverter(FlowInterpolator(), Fraction(25), Fraction(50))
    made = [each for shown in (first, second) for each in converter.push(VideoFrame.from_rgb(shown))]
    made += converter.flush()
    whole = VideoFrame.from_rgb(FlowInterpolator().between(first, second, 0.5))
    inner = (slice(196, 292), slice(216, 376))
    assert np.abs(made[1].planes[0][inner].astype(int) - whole.planes[0][inner]).mean() < 1
    assert np.array_equal(made[1].planes[0][:100], made[0].planes[0][:100])


def test_neighbors_of_the_same_scene_are_reported_on_either_side():
    alike = [VideoFrame.from_rgb(shifted(texture(1), 2 * index)) for index in range(4)]
    recording = RecordingInterpolator()
    converter = FrameRateConverter(recording, Fraction(25), Fraction(50))
    for frame in (*alike, VideoFrame.from_rgb(texture(2))):
        list(converter.push(frame))
    list(converter.flush())
    expected = [(None, alike[2]), (alike[0], alike[3]), (alike[1], None)]  # nothing from beyond the cut
    assert len(recording.around) == len(expected)
    for found, wanted in zip(recording.around, expected, strict=True):
        for image, frame in zip(found, wanted, strict=True):
            assert (image is None) if frame is None else np.array_equal(image, frame.rgb())


def test_flow_follows_motion_where_blending_doubles_it():
    first, middle, second = texture(), shifted(texture(), 3), shifted(texture(), 6)
    made = FlowInterpolator().between(first, second, 0.5)
    inner = (slice(16, -16), slice(16, -16))

    def error(image: np.ndarray) -> float:
        return float(np.square(image[inner].astype(float) - middle[inner]).mean())

    blended = (first.astype(float) + second) / 2
    assert error(made) < error(blended) / 10
    quarter = FlowInterpolator().between(first, second, 0.25)
    assert np.square(quarter[inner].astype(float) - shifted(texture(), 1.5)[inner]).mean() < error(blended) / 10


def test_flow_knows_motion_that_speeds_up_from_four_images():
    places = [0.5 * time**2 for time in (4, 5, 6, 7, 8)]  # pixels, of which 5, 6 and 7 are first, middle and second
    first, middle, second = (shifted(texture(), places[i]).astype(float) for i in (1, 2, 3))
    before, after = (shifted(texture(), 0.5 * time**2) for time in (3, 9))
    pair = first.astype(np.uint8), second.astype(np.uint8)
    inner = (slice(24, -24), slice(48, -48))

    def error(image: np.ndarray) -> float:
        return float(np.square(image[inner] - middle[inner]).mean())

    flow = FlowInterpolator()
    straight, bent = flow.between(*pair, 0.5), flow.between(*pair, 0.5, before, after)
    assert error(bent) < error(straight) / 4
    assert error(flow.between(*pair, 0.5, before)) < error(straight) / 4  # constant acceleration: one side says it all
    assert error(flow.between(*pair, 0.5, None, after)) < error(straight) / 4


def test_occluded_pixels_come_from_the_other_neighbor():
    backdrop, patch = texture(3), texture(4)[:60, :60]

    def scene(left: int) -> np.ndarray:
        image = backdrop.copy()
        image[34:94, left : left + 60] = patch
        return image

    first, middle, second = scene(50), scene(53), scene(56)
    made = FlowInterpolator().between(first, second, 0.5)
    plain = (first.astype(float) + second) / 2
    for seen_once in (slice(50, 53), slice(113, 116)):  # columns that only the second, only the first shows

        def error(image: np.ndarray, columns: slice = seen_once) -> float:
            return float(np.square(image[44:84, columns].astype(float) - middle[44:84, columns]).mean())

        assert error(made) < error(plain) / 2


def test_flow_of_a_pair_is_measured_once():
    meter = FlowEstimator()
    first, second, third = (shifted(texture(), pixels) for pixels in (0, 2, 4))
    known = meter.both_ways(first, second)
    meter.both_ways(second, third)
    assert meter.both_ways(first, second) is known
    assert meter.both_ways(first, third) is not known


def test_flow_of_unrelated_noise_is_no_worse_than_blending():
    rng = np.random.default_rng(0)
    first, second = (np.clip(texture() + rng.normal(0, 6, (128, 192, 3)), 0, 255).astype(np.uint8) for _ in "ab")
    made = FlowInterpolator().between(first, second, 0.5).astype(float)
    blended = (first.astype(float) + second) / 2
    truth = texture().astype(float)
    assert np.square(made - truth).mean() < 1.1 * np.square(blended - truth).mean()


def test_doubling_the_rate_keeps_audio_and_source_frames(tmp_path):
    source = write_clip(tmp_path / "a b.mp4", 12, tone_seconds=0.48)
    recording: list[Progress] = []
    out = change_frame_rate(source, tmp_path / "out.mp4", 50, on_progress=recording.append)
    with av.open(str(out)) as container:
        assert container.streams.video[0].average_rate == 50
        frames = list(container.decode(video=0))
    assert len(frames) == 24 and recording[0] == Progress("interpolation", 0, 12) and len(recording) == 12
    assert all(progress.seconds_left is not None for progress in recording[1:])
    with av.open(str(out)) as made, av.open(str(source)) as given:
        packets = [[bytes(p) for p in file.demux(audio=0) if p.size] for file in (made, given)]
    assert packets[0] == packets[1]
    shown = numbers_of(VideoFrame.from_rgb(frame.to_ndarray(format="rgb24")) for frame in frames[::2])
    assert shown == list(range(12))


@pytest.mark.parametrize("target", [59.94, "59.94", "60000/1001"])
def test_ntsc_rates_keep_every_source_frame(tmp_path, target):
    source = write_clip(tmp_path / "a.mp4", 20, fps=Fraction(30000, 1001))
    out = change_frame_rate(source, tmp_path / "out.mp4", target, crf=0)
    info = probe_video(out)
    assert info.fps == Fraction(60000, 1001)
    with VideoReader(probe_video(source)) as given, VideoReader(info) as made:
        kept = [decoded.frame.i420 for decoded in made.decode()][::2]
        for original, frame in zip(given.decode(), kept, strict=True):
            np.testing.assert_array_equal(frame, original.frame.i420)


def test_a_file_that_cannot_be_done_leaves_nothing(tmp_path):
    source = write_clip(tmp_path / "a.mp4", 6)
    before = set(tmp_path.iterdir())
    for problem in ({"target_fps": 0.5}, {"target_fps": 5000}, {"target_fps": 50, "interpolator": "film"}):
        with pytest.raises(UserError):
            change_frame_rate(source, tmp_path / "out.mp4", **problem)

    def cancel(*state: object) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        change_frame_rate(source, tmp_path / "out.mp4", 50, on_progress=cancel)
    with pytest.raises(UserError, match="no RIFE weights"):
        change_frame_rate(source, tmp_path / "out.mp4", 50, rife_path=tmp_path / "flownet.pkl")
    assert set(tmp_path.iterdir()) == before


@pytest.fixture(scope="module")
def ifnet():
    return fill_(interpolation._rife_module().IFNet(width=16), 0).eval()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("teacher", [True, False])
def test_rife_weights_load_strictly(ifnet, tmp_path, prefix, teacher):
    state = {f"{prefix}{k}": v for k, v in ifnet.state_dict().items() if teacher or not k.startswith("block_tea")}
    torch.save(state, tmp_path / "flownet.pkl")
    net = load_rife(tmp_path / "flownet.pkl")
    assert torch.equal(net.block1.conv1[0].weight, ifnet.block1.conv1[0].weight)
    state.pop(f"{prefix}block2.conv2.2.bias")
    torch.save(state, tmp_path / "flownet.pkl")
    with pytest.raises(UserError, match=r"block2\.conv2\.2\.bias"):
        load_rife(tmp_path / "flownet.pkl")


def test_rife_layout():
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in interpolation._rife_module().IFNet().state_dict().items()}
    assert shapes["block0.conv0.0.0.weight"] == (45, 11, 3, 3)
    assert shapes["block2.convblock3.1.1.weight"] == (90,)
    assert shapes["block1.conv1.2.weight"] == (45, 4, 4, 4) and shapes["block1.conv2.2.weight"] == (45, 1, 4, 4)
    assert shapes["block_tea.conv0.0.0.weight"] == (45, 14, 3, 3)


@pytest.fixture
def rife(ifnet, tmp_path) -> RifeInterpolator:
    torch.save(ifnet.state_dict(), tmp_path / "flownet.pkl")
    return open_interpolator("auto", rife_path=tmp_path / "flownet.pkl")


def test_rife_treats_both_neighbors_alike_at_any_size(rife):
    first, second = texture(1)[:90, :110], texture(2)[:90, :110]
    made, turned = rife.between(first, second, 0.5), rife.between(second, first, 0.5)
    assert made.shape == first.shape and made.dtype == np.uint8
    assert abs(made.astype(int) - turned).max() <= 1


def test_rife_approximates_any_time_by_halving(rife, monkeypatch):
    monkeypatch.setattr(rife, "net", lambda a, b, scale: (a + b) / 2)
    black, white = np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 255, np.uint8)
    for t in (0.5, 0.25, 1 / 3, 0.9, 0.04):
        assert abs(rife.between(black, white, t).mean() / 255 - t) <= 1 / 32 + 0.01


def test_large_images_are_done_in_tiles_without_seams(rife, monkeypatch):
    monkeypatch.setattr(rife, "net", lambda a, b, scale: (a + b) / 2)
    monkeypatch.setattr(interpolation, "TILE", 64)
    monkeypatch.setattr(interpolation, "OVERLAP", 16)
    first, second = texture(1), texture(2)
    made = rife.between(first, second, 0.5)
    assert abs(made.astype(float) - (first.astype(float) + second) / 2).max() <= 1


def test_away_from_the_seams_tiles_give_the_same_image(rife, monkeypatch):
    first = np.tile(texture(1), (1, 4, 1))[:64, :640]
    second = shifted(first, 3)
    whole = rife.between(first, second, 0.5).astype(int)
    monkeypatch.setattr(interpolation, "TILE", 384)
    monkeypatch.setattr(interpolation, "OVERLAP", 128)
    assert interpolation._tiles(640) == [0, 256]
    apart = np.abs(rife.between(first, second, 0.5) - whole).max(axis=(0, 2))  # of each column
    assert max(apart[:224].max(), apart[416:].max()) <= 2  # the tiles share columns 256 to 384
    assert apart.max() < 40  # random weights: pixels near the end of a tile differ, and are faded out


def test_warping_takes_pixels_from_where_the_flow_leads():
    module = interpolation._rife_module()
    image = torch.arange(20.0).view(1, 1, 4, 5)
    flow = torch.zeros(1, 2, 4, 5)
    flow[:, 0] = 1
    assert torch.allclose(module.warp(image, flow)[0, 0, :, :4], image[0, 0, :, 1:])
    assert torch.allclose(module.warp(image, flow)[0, 0, :, 4], image[0, 0, :, 4])


def test_the_command(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("rife_command", PROJECT_ROOT / "ECCV2022-RIFE" / "inference_video.py")
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    source = write_clip(tmp_path / "in.mp4", 5)
    assert command.main(["--video", str(source), "--exp", "2"]) == 0
    out = tmp_path / "in_4x.mp4"
    assert capsys.readouterr().out.strip() == str(out)
    with av.open(str(out)) as container:
        assert (container.streams.video[0].average_rate, len(list(container.decode(video=0)))) == (100, 20)
    assert command.main(["--video", str(tmp_path / "no.mp4"), "--fps", "60"]) == 1
    assert "no.mp4" in capsys.readouterr().err
