"""The benchmark tool: every section on its smallest input, and the printed figures."""

import json
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from unittest.mock import Mock

import av
import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend

from latentsync.config.unet import load_unet_config
from latentsync.data.clips import examine_clips, read_fileslist
from latentsync.media.audio import audio_duration
from latentsync.models import quantized
from latentsync.models.unet_config import UNetConfig
from latentsync.options import GenerationOptions
from latentsync.pipelines.run import Run
from latentsync.pipelines.sampling import Sampling
from latentsync.training.unet_setup import load_syncnets
from latentsync.utils.errors import UserError
from tests.tiny_model import PROJECT_ROOT
from tests.training.tiny_run import TinyTask, run_config
from tests.training.tiny_unet import VIDEO_MAE
from tools import benchmark
from tools.benchmarks import (
    full_size,
    geometry,
    gpu,
    inputs,
    networks,
    overhead,
    precisions,
    processes,
    startup,
    trace,
    training,
)
from tools.benchmarks.report import Figure, Journal, as_json, as_markdown, as_text

SIZE = (320, 240)
CROP_WIDTH = 120


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return inputs.make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", SIZE, CROP_WIDTH, 0.4)


def test_geometry():
    figures = geometry.measure(["720p"], [128], repeats=2)
    assert [figure.name for figure in figures] == ["align, 720p, 128 px", "paste-back, 720p, 128 px"]
    assert all(figure.value > 0 for figure in figures)


def test_overhead(tmp_path, clip):
    wall, cpu, alone, whole = overhead.measure(tmp_path, clip, seconds=0.4, repeats=1, resolution=64)
    assert wall.value == pytest.approx(whole.value / alone.value)
    assert cpu.limit == overhead.RATIO_LIMIT
    assert "320x240, 10 frames" in wall.note


def test_frames_have_a_face_of_the_given_size():
    frames = list(inputs.moving_frames(SIZE, CROP_WIDTH, 3))
    for frame, anchors in frames:
        assert (frame.width, frame.height) == SIZE
        assert np.linalg.norm(anchors[1] - anchors[0]) == pytest.approx(CROP_WIDTH * 41 / 75, rel=0.15)
    assert not np.array_equal(frames[0][0].i420, frames[1][0].i420)


def test_looped_clip_decodes_to_its_length(tmp_path, clip):
    looped = inputs.loop_clip(clip, tmp_path / "looped.mp4", 1.2)
    with av.open(str(looped)) as container:
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert np.diff(times).tolist() == [Fraction(1, 25)] * 29


def test_speech_has_the_exact_length(tmp_path):
    assert audio_duration(inputs.make_speech(tmp_path / "voice.wav", 7.25)) == 7.25


def test_peak_memory_is_the_childs(tmp_path):
    megabyte = 2**20
    peaks = [
        processes.peak_memory([sys.executable, "-c", f"bytearray({size} * {megabyte})"], tmp_path) for size in (1, 100)
    ]
    assert peaks[0] < 60 * megabyte
    assert 90 * megabyte < peaks[1] - peaks[0] < 110 * megabyte


def test_failing_command_is_named(tmp_path):
    with pytest.raises(UserError, match="exit code 3"):
        processes.peak_memory([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


def test_full_size_layouts_are_those_of_the_configs():
    for side, name in ((256, "stage2"), (512, "stage2_512")):
        config = load_unet_config(PROJECT_ROOT / "configs" / "unet" / f"{name}.yaml", UNetConfig)
        assert (config.model, config.data.resolution) == (full_size.FULL_SIZE[side].model, side)


def test_networks_with_a_tiny_model(tmp_path):
    journal = tmp_path / "journal.json"
    figures = {figure.name: figure for figure in networks.measure(is_tiny=True, journal=Journal(journal))}
    names = {f"64 px, {name}, {way.name}" for way in networks.TINY_WAYS for name in way.networks}
    assert names | {f"{name}: arithmetic" for name in names} == figures.keys()
    assert all(figure.value > 0 for figure in figures.values())
    again = networks.measure(is_tiny=True, journal=Journal(journal))
    assert again == list(figures.values())  # times and all: they were read


def test_a_kernel_that_is_not_available_is_reported(monkeypatch):
    way = networks.Way("eager, flash attention", attention=SDPBackend.FLASH_ATTENTION)
    monkeypatch.setattr(networks, "TINY_WAYS", (way,))
    monkeypatch.setattr(networks, "_time", Mock(side_effect=RuntimeError("No available kernel.")))
    [figure] = networks.measure(is_tiny=True)
    assert figure.value is None and figure.note == "No available kernel."


def test_networks_need_neither_decoders_nor_detectors():
    """The packages of video, faces and YAML files are absent."""
    absent = ("av", "decord", "mediapipe", "insightface", "onnx", "onnxruntime", "omegaconf", "accelerate")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); from tools.benchmarks import networks"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, check=True)


def test_a_missing_package_is_named(monkeypatch, capsys):
    missing = Mock(side_effect=ModuleNotFoundError("No module named 'av'"))
    monkeypatch.setattr(benchmark, "sections", lambda: {"gpu": missing, "demo": lambda options, folder: []})
    assert benchmark.main(["gpu"]) == 1
    assert "No module named 'av'; the benchmark gpu needs it" in capsys.readouterr().err
    assert benchmark.main([]) == 0
    assert "No module named 'av'" in capsys.readouterr().out


def test_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for [figure] in (networks.measure(), gpu.measure(tmp_path), training.measure(tmp_path)):
        assert figure.verdict == "not measured" and figure.note == "no CUDA device"


def test_gpu_benchmark_with_a_tiny_model(tmp_path):
    figures = {figure.name: figure for figure in gpu.measure(tmp_path, seconds=0.4, is_tiny=True)}
    without_gpu = {name for name, figure in figures.items() if figure.value is None}
    assert without_gpu == {f"64 px, eager, {lever.name}: peak memory" for lever in gpu.TINY_LEVERS}
    assert figures["64 px, eager, 2 steps: end to end"].value > 0
    assert 0 <= figures["64 px, eager, 2 steps: device idle"].value < 100
    shares = [figure.value for name, figure in figures.items() if ": kernel " in name]
    assert len(shares) == gpu.TOP_KERNELS and shares == sorted(shares, reverse=True) and sum(shares) <= 100
    assert {"64 px, one encode", "64 px, one decode", "64 px, everything but the networks"} < figures.keys()


def test_a_failing_lever_does_not_stop_the_others(tmp_path, monkeypatch):
    def run_out(bench, seconds, options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu.Bench, "run", run_out)
    monkeypatch.setattr(gpu, "_stages", lambda bench: [])
    figures = gpu.measure(tmp_path, seconds=0.2, is_tiny=True)
    assert [figure.note for figure in figures] == ["CUDA out of memory"] * len(gpu.TINY_LEVERS)


def test_precisions_with_a_tiny_model(monkeypatch):
    monkeypatch.setattr(quantized, "multiplies_int8", lambda: False)
    found = precisions.measure(is_tiny=True)
    figures = {figure.name: figure.value for figure in found}
    assert all(figures[f"{name}, PSNR against float32"] > 20 for name in ("float16", "bfloat16"))
    assert found[-1].value is None and ("VNNI" in found[-1].note or "torchao" in found[-1].note)


def test_operations_of_the_full_size_model():
    layout = full_size.FULL_SIZE[256]
    options, noise = GenerationOptions(chunk_overlap=0), torch.zeros(1, 4, 1, 32, 32)
    one, two = (
        full_size.operations_per_frame(layout, Run(options, Sampling(steps, 1.0), None, 16, 256, None, noise))
        for steps in (1, 2)
    )
    assert two - one == pytest.approx(253e9, rel=2e-3)  # one evaluation of the UNet
    assert one - (two - one) == pytest.approx(1.17e12, rel=5e-3)  # two encodes and one decode


def test_a_trace_is_summarized(tmp_path):
    def event(name, start, duration, category="kernel"):
        return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration}

    events = [
        event("gemm", 100.0, 40.0),
        event("copy", 120.0, 40.0, "gpu_memcpy"),  # beside the first
        event("norm", 200.0, 10.0),
        event("gemm", 210.0, 40.0),
        event("on the host", 0.0, 999.0, "cpu_op"),
        {"ph": "M", "name": "process_name"},
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    found = trace.read_trace(path, trace.ON_DEVICE)
    assert found.span == pytest.approx(150e-6) and found.busy == pytest.approx(110e-6)
    assert found.longest_gap == pytest.approx(40e-6) and found.idle == pytest.approx(4 / 15)
    (first, share, count), *rest = found.top(2)
    assert (first, count, [name for name, *_ in rest]) == ("gemm", 2, ["copy"])
    assert share == pytest.approx(80 / 130)
    assert trace.read_trace(path, frozenset({"none"})).idle == 0


@pytest.mark.parametrize(
    "name, peak", [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA L40S", 362), ("Other", None)]
)
def test_dense_peaks(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    text = full_size.share_of_peak(torch.device("cuda"), 100.0)
    assert text == (f"{100 * 100 / peak:.1f} % of {peak} ({name})" if peak else f"{name}: dense peak unknown")


def test_a_timed_run_saves_no_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("latentsync.training.report._open_tensorboard", lambda folder, step: None)
    row = training.time_run(TinyTask(), run_config(tmp_path / "output"))
    assert row["step"] == training.WARM_UP + training.STEPS and row["steps_per_second"] > 0
    assert 0 <= row["data_wait"] <= 1
    assert {path.name for path in (tmp_path / "output").iterdir()} <= {"checkpoints", "train.csv"}
    assert not list((tmp_path / "output").glob("checkpoints/*"))


def test_training_is_measured_on_the_config_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CLIP_SECONDS", 2)
    config = training.make_config(tmp_path / "run", tmp_path / "videomae.pt", "stage2")
    published = load_unet_config(PROJECT_ROOT / "configs/unet/stage2.yaml", UNetConfig)
    assert config.model == published.model and config.optimizer == published.optimizer
    assert config.run == replace(published.run, perceptual_random_trunk=True)
    clips = read_fileslist(config.data.train_fileslist)
    assert len(examine_clips(clips, min_frames=50, resolution=256)) == training.CLIPS
    assert load_syncnets(config, 5)[0].batch_key == "mel"
    timings = {"steps_per_second": 0.5, "data_wait": 0.02}
    speed, memory, waiting = training.as_figures("stage2.yaml", config, timings, 3 * 2**30)
    assert (speed.value, memory.value, waiting.value) == (0.5, 3.0, 2.0) and "1 x 16 frames" in speed.note


def test_insufficient_gpu_memory_is_reported(tmp_path, monkeypatch):
    def run_out(task, settings):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for name, replacement in {
        "VIT_G": VIDEO_MAE,
        "make_task": lambda config: None,
        "time_run": run_out,
        "CLIP_SECONDS": 1,
    }.items():
        monkeypatch.setattr(training, name, replacement)
    [figure] = training.measure(tmp_path, ["stage2_512"])
    assert figure.verdict == "not measured" and figure.name == "stage2_512.yaml" and "too little memory" in figure.note


def test_missed_targets_are_printed_as_missed():
    figures = [Figure("a", "fast", 1.0, "ms", 2.0), Figure("a", "slow", 3.0, "ms", 2.0), Figure("b", "free", 5.0, "s")]
    text = as_text(figures, {"CPU": "some"}, "python -m tools.benchmark")
    assert "MISSED" in next(line for line in text.splitlines() if line.startswith("slow"))
    assert text.count("MISSED") == 1 and text.count("met") == 1
    assert "| a | slow | 3 ms | <= 2 ms | MISSED |" in as_markdown(figures, {}, "")
    assert [row["verdict"] for row in json.loads(as_json(figures, {}, ""))["figures"]] == ["met", "MISSED", ""]


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(processes, "measure_demo", lambda folder, options: [Figure("demo", str(options), 1.0, "s")])
    out = tmp_path / "figures.md"
    assert benchmark.main(["demo", "--markdown", str(out), "--", "--inference_steps", "1"]) == 0
    printed = capsys.readouterr().out
    assert "['--inference_steps', '1']" in printed and "torch: " in printed
    assert "--inference_steps 1" in out.read_text()


def test_wrong_usage():
    for words in (["overhead", "--repeats", "0"], ["gpu", "--resolution", "300"]):
        with pytest.raises(SystemExit) as stopped:
            benchmark.main(words)
        assert stopped.value.code == 2


def test_startup(tmp_path):
    pytest.importorskip("pyarrow")
    first, *others = startup.measure(tmp_path, clips=300)
    assert first.name == "first start with 300 clips, opening the list" and len(others) == 5
    assert all(figure.value is not None and figure.value >= 0 for figure in (first, *others))
