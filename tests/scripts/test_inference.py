"""The command line: options, exit codes, every kind of bad and odd input, interrupts."""

import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from latentsync.models.lora import add_lora, save_lora
from latentsync.models.unet import UNet3DConditionModel
from latentsync.options import OPTIONS, RENAMED
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.utils.commands import INTERRUPTED
from scripts.inference import build_parser, main, parse_options
from tests.media.synthetic import tone, write_audio
from tests.pipelines.scenes import PORTRAIT, clip, draw_scene
from tests.tiny_model import PROJECT_ROOT, UNET
from tests.waiting import HANG_SECONDS

ARGUMENTS = (
    "video_path audio_path video_out_path temp_dir config quiet inference_ckpt_path unet_config_path vae_path "
    "whisper_path scheduler_config_path device dtype weights quantize compile report"
).split()


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """`main` sets the log level of the process."""
    level, threads = logging.getLogger().level, torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    logging.getLogger().setLevel(level)


NO_SPEECH = "no speech was found"  # in tones: logged at the level INFO, which an earlier run may have let through


class Outcome:
    """Exit code, printed path, and the lines on stderr but for the progress bar's. (Logging goes to `caplog`.)"""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out = code, out.strip()
        self.errors = without_progress(err)


def without_progress(err: str) -> list[str]:
    lines = err.replace("\r", "\n").splitlines()
    return [
        line
        for line in lines
        if line.strip() and not line.startswith(("preparing:", "lip-sync:", "finishing:", NO_SPEECH))
    ]


@pytest.fixture
def cli(tiny_files, media, tmp_path, capfd, shared_detector) -> Callable[..., Outcome]:
    """Run `main` with the tiny model on clip.mp4 and voice.wav by default."""

    def call(*words: str, video: object = None, audio: object = None, out: object = None) -> Outcome:
        inputs = {
            "video_path": video or media / "clip.mp4",
            "audio_path": audio or media / "voice.wav",
            "video_out_path": out or tmp_path / "out" / "o.mp4",
        }
        capfd.readouterr()
        code = main([*tiny_files.options, *(f"--{name}={value}" for name, value in inputs.items()), *words])
        return Outcome(code, *capfd.readouterr())

    return call


def usage_error(capfd, *words: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(list(words))
    assert exit_.value.code == 2
    return capfd.readouterr().err


def test_help_names_every_option(capfd):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    shown = capfd.readouterr().out
    assert [name for name in (*ARGUMENTS, *OPTIONS) if f"--{name}" not in shown] == []
    actions = {action.dest: action for action in build_parser()._actions if action.dest not in RENAMED}
    assert set(actions) == {*ARGUMENTS, *OPTIONS, "help"} and all(action.help for action in actions.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--no_such_option"], "unrecognized arguments: --no_such_option"),
        (["--video"], "unrecognized arguments: --video"),  # no abbreviations: they break when options are added
        (["--inference_step=3"], "unrecognized arguments: --inference_step=3; did you mean --inference_steps?"),
        (["--dtype=half"], "argument --dtype: invalid choice: 'half'"),
        (["--seed"], "argument --seed: expected one argument"),
        (["--audio_path"], "argument --audio_path: expected one argument"),
        (["--audio_path", "--quiet"], "argument --audio_path: expected one argument"),
    ],
)
def test_wrong_usage(capfd, words, message):
    lines = usage_error(capfd, *words).splitlines()
    assert len(lines) == 2 and lines[0].startswith("usage: ") and message in lines[1]


def test_defaults_are_the_demo():
    options = parse_options([])
    assert options.video_path.is_file() and options.audio_path is None  # the demo's, unless a text or a script speaks
    assert options.video_out_path == Path("outputs/demo.mp4")
    options = options.generation
    assert (options.seed, options.crf, options.face, options.keep_fps) == (1247, 18, "largest", False)


def test_names_with_a_leading_dash_are_values():
    options = parse_options(["--video_path", "-a.mp4", "--audio_path", "--b.wav", "--seed", "-1", "--quiet"])
    assert (options.video_path, options.audio_path) == (Path("-a.mp4"), Path("--b.wav"))
    assert options.generation.seed == -1 and options.quiet


def test_config_file(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "video_path: a b.mp4\nface: 100,200\nkeep_fps: true\nquiet: false\ncrf: 23\nvideo_fps: 30\nmodel: null\n"
    )
    options = parse_options(["--crf", "11", "--config", str(tmp_path / "c.yaml")])
    assert (options.video_path, options.quiet) == (Path("a b.mp4"), False)
    options = options.generation
    assert (options.face, options.video_fps) == ("100,200", 30.0)
    assert (options.keep_fps, options.model) == (True, "auto")
    assert options.crf == 11  # the command line wins
    assert options.seed == 1247


def test_a_file_and_the_command_line_complete_each_other(tmp_path, capfd):
    (tmp_path / "c.yaml").write_text("enhancer: gfpgan\nmatch_colour: true\n")
    words = ["--config", str(tmp_path / "c.yaml")]
    options = parse_options([*words, "--enable_upscale"]).generation
    assert (options.enhancer, options.match_color) == ("gfpgan", True)
    assert main(words) == 1 and capfd.readouterr().err.startswith("error: enhancer has no effect without")
    assert main([*words, "--crf=99"]) == 1 and capfd.readouterr().err.startswith("error: crf must be")


def test_the_former_spelling():
    assert parse_options(["--match_colour"]).generation.match_color


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("crf: high", "crf must be a whole number from 0 to 51, not 'high'"),
        ("solver: dpm+", "solver must be one of ddim, dpm++, not 'dpm+'; did you mean dpm++?"),
        ("dtype: half", "dtype must be float32, float16, bfloat16, not 'half'"),
        ("crf: true", "crf must be a whole number from 0 to 51, not 'True'"),
        (
            "face: [1, 2]",
            "face must be largest, left, right, speaker, person1",
        ),
        ("temp_dir: [1, 2]", "temp_dir must be a single value, not [1, 2]"),
        ("device: true", "device must be a single value, not True"),
        ("quiet: 1", "quiet must be true or false, not 1"),
        ("keep_fps: maybe", "keep_fps must be true or false, not 'maybe'"),
        ("vidio_path: a.mp4\nfoo: 1", "unknown options vidio_path, foo; did you mean video_path?"),
        ("config: other.yaml", "unknown options config"),
        ("help: true", "unknown options help"),
        ("- a\n- b", "holds a list"),
        ("just words", "unknown options just words"),
        ("a: [", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not a text file"),
    ],
)
def test_config_files_that_are_wrong(tmp_path, capfd, content, message):
    path = tmp_path / "c.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["--config", str(path)]) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"error: {path}") and message in error and error.count("\n") == 1


def test_missing_config_file(capfd):
    assert main(["--config", "none.yaml"]) == 1
    assert capfd.readouterr().err == "error: none.yaml: no such config file\n"


def test_done(cli, tmp_path):
    done = cli("--temp_dir", str(tmp_path / "temp"))
    path = tmp_path / "out" / "o.mp4"
    assert (done.code, done.out, done.errors) == (0, str(path), [])
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 10
    assert [entry.name for entry in path.parent.iterdir()] == ["o.mp4"] and not list((tmp_path / "temp").iterdir())


def test_seeds(cli, tmp_path, monkeypatch):
    """What reaches the networks: the noise follows the seed, and -1 draws another each time."""
    noises = []
    begin = LipsyncPipeline.begin
    monkeypatch.setattr(LipsyncPipeline, "begin", lambda *args: noises.append(args[4].noise) or begin(*args))
    for words in ([], ["--seed=1247"], ["--seed=-1"], ["--seed=-1"]):
        assert cli(*words).code == 0
    assert torch.equal(noises[0], noises[1])
    assert len({tuple(noise.flatten().tolist()) for noise in noises}) == 3


# Bad input. Each function makes what is given in a folder; most give a video, some an audio or other options.


def no_frames(folder: Path) -> Path:
    with av.open(str(folder / "v.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    return folder / "v.mkv"


def bytes_file(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def truncated(folder: Path) -> Path:
    path = clip(folder / "v.mp4", 12)  # its index is at the end
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


BAD_VIDEOS = {
    "missing": (lambda folder: folder / "none.mp4", "no such video file"),
    "directory": (lambda folder: folder, "this is a folder; give a video file"),
    "empty": (bytes_file("v.mp4", b""), "the video file is empty"),
    "text": (bytes_file("v.mp4", b"no video\n" * 200), "not a video file that can be read"),
    "noise": (bytes_file("v.mp4", np.random.default_rng(0).bytes(5000)), "not a video file that can be read"),
    "truncated": (truncated, "not a video file that can be read"),
    "no frames": (no_frames, "not a video file that can be read"),
    "only audio": (lambda folder: write_audio(folder / "a.mp4", tone(16000, 0.4), codec="aac"), "only audio"),
    "no face": (lambda folder: clip(folder / "v.mp4", 12, lambda index: draw_scene(())), "no face was found"),
    "1x1": (lambda folder: tiny_video(folder), "no face was found"),
    "1x1 still": (lambda folder: save_image(folder / "p.png", np.zeros((1, 1, 3), np.uint8)), "no face was found"),
}
BAD_AUDIOS = {
    "missing": (lambda folder: folder / "none.wav", "no such audio file"),
    "directory": (lambda folder: folder, "this is a folder; give an audio file"),
    "empty": (bytes_file("a.wav", b""), "the audio file is empty"),
    "text": (bytes_file("a.wav", b"no audio\n" * 200), "not an audio file that can be read"),
    "no stream": (lambda folder: clip(folder / "v.mp4", 12), "the file has no audio stream"),
    "0.05 s": (lambda folder: write_audio(folder / "a.wav", tone(16000, 0.05)), "only 0.05 s of audio"),
}


def tiny_video(folder: Path) -> Path:
    return clip(folder / "v.mkv", 12, lambda index: np.full((1, 1, 3), 90, np.uint8), codec="ffv1", pix_fmt="yuv444p")


def save_image(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def check_refused(outcome: Outcome, message: str, folder: Path) -> None:
    """Exit 1, exactly one line, and the folder of the output as it was."""
    assert outcome.code == 1 and outcome.out == ""
    assert len(outcome.errors) == 1 and outcome.errors[0].startswith("error: ") and message in outcome.errors[0]
    assert [entry.name for entry in folder.iterdir()] == ["o.mp4"] and (folder / "o.mp4").read_bytes() == b"old"


@pytest.fixture
def prior(tmp_path) -> Path:
    """The output's folder, with a result of an earlier run in it."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "o.mp4").write_bytes(b"old")
    return folder


@pytest.mark.parametrize("case", BAD_VIDEOS)
def test_bad_videos(cli, tmp_path, prior, case):
    make, message = BAD_VIDEOS[case]
    check_refused(cli(video=make(tmp_path)), message, prior)


@pytest.mark.parametrize("case", BAD_AUDIOS)
def test_bad_audios(cli, tmp_path, prior, case):
    make, message = BAD_AUDIOS[case]
    check_refused(cli(audio=make(tmp_path)), message, prior)


def test_bad_checkpoints(cli, tmp_path, prior, tiny_files):
    state = torch.load(tiny_files.unet, weights_only=True)["state_dict"]
    with (tmp_path / "pickle.pt").open("wb") as file:
        pickle.dump({"a": [1, 2, 3]}, file)
    torch.save({"a": "word"}, tmp_path / "words.pt")
    torch.save({name: state[name] for name in list(state)[2:]}, tmp_path / "other.pt")
    (tmp_path / "cut.pt").write_bytes(tiny_files.unet.read_bytes()[:100_000])
    for name, message in {
        "none.pt": "no such UNet checkpoint",
        "pickle.pt": "is a Python pickle",
        "words.pt": "is not a file of weights",
        "other.pt": "does not fit the model config",
        "cut.pt": "is truncated or damaged",
    }.items():
        check_refused(cli(f"--inference_ckpt_path={tmp_path / name}"), message, prior)
    shown = cli(f"--unet_config_path={PROJECT_ROOT / 'configs/unet/stage2.yaml'}")
    check_refused(shown, "does not fit the model config", prior)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("o.avi", "cannot write .avi"),
        ("o", "cannot write a file without extension"),
        ("", "the output is a folder"),
        ("o.mp4/x.mp4", "its folder cannot be created"),
        (f"{'n' * 300}.mp4", "cannot be written (File name too long)"),
    ],
)
def test_outputs_that_cannot_be_written(cli, prior, name, message):
    check_refused(cli(out=prior / name), message, prior)


def test_the_output_must_not_be_an_input(cli, media, tmp_path):
    before = (media / "clip.mp4").read_bytes()
    (tmp_path / "link.mp4").symlink_to(media / "clip.mp4")
    for out in (media / "clip.mp4", tmp_path / ".." / tmp_path.name / "link.mp4"):
        assert "the output is also an input" in cli(out=out).errors[0]
    assert (media / "clip.mp4").read_bytes() == before


def test_folders_made_for_an_output_go_again_with_it(cli, tmp_path):
    out = tmp_path / "new" / "folder" / "o.mp4"
    assert cli(out=out, video=clip(tmp_path / "v.mp4", 5, lambda index: draw_scene(()))).code == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--seed=-2", "seed must be a whole number from -1 up"),
        ("--crf=52", "crf must be a whole number from 0 to 51, not '52'"),
        ("--crf=high", "crf must be a whole number from 0 to 51, not 'high'"),
        ("--chunk_batch_size=65", "chunk_batch_size must be"),
        ("--chunk_batch_size=0", "chunk_batch_size must be a whole number from 1 to 64, or auto, not '0'"),
        ("--video_fps=nan", "video_fps must be a number from 1 to 120"),
        ("--sharpness_factor=-1", "sharpness_factor must be"),
        ("--on_short_video=stop", "length_mode must be one of bounce, loop, freeze"),
        ("--model=embeded", "did you mean embedded?"),
        ("--lora=none.safetensors", "none.safetensors: no such checkpoint"),
        ("--lora_scale=0.5", "lora_scale has no effect without lora"),
        ("--enhancer=gfpgan", "enhancer has no effect without enable_upscale"),
        ("--inference_steps=1001", "inference_steps must be a whole number from 1 to 100"),
        ("--face=middle", "face must be largest, left, right, speaker, person1"),
        ("--face=7", "no face that matches the selection (7) was found"),
        ("--device=tpu", "unknown device 'tpu'"),
        ("--temp_dir=/dev/null", "temp dir /dev/null cannot be written to"),
        ("--mask_image_path=none.png", "none.png does not exist"),
    ],
)
def test_bad_values(cli, prior, option, message):
    check_refused(cli(option), message, prior)


def test_an_adapter(cli, tmp_path, tiny_files, caplog):
    unet, _ = UNet3DConditionModel.from_pretrained(UNET, tiny_files.unet)
    for parameter in add_lora(unet, rank=2):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    save_lora(unet, tmp_path / "a b.safetensors", step=5)
    without = Path(cli().out).read_bytes()
    with caplog.at_level(logging.INFO):
        done = cli(f"--lora={tmp_path / 'a b.safetensors'}", "--lora_scale=0.5")
    assert done.code == 0 and done.errors == [] and "a b.safetensors (step 5), scale 0.5" in caplog.text
    assert Path(done.out).read_bytes() != without


def sideways(index: int) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(draw_scene(((16 + index % 8, 0),))))


ODD_VIDEOS = {
    "odd sides": (lambda path: clip(path / "v.mkv", 12, odd_image, pix_fmt="yuv444p"), (154, 120)),
    "rotated": (lambda path: clip(path / "v.mp4", 12, sideways, rotation=-90), (160, 120)),
    "variable rate": (
        lambda path: clip(
            path / "v.mp4", 12, stamps=[40 * i + 13 * (i % 3) for i in range(12)], time_base=Fraction(1, 1000)
        ),
        (160, 120),
    ),
    "10 bit": (lambda path: clip(path / "v.mkv", 12, pix_fmt="yuv420p10le"), (160, 120)),
    "alpha": (lambda path: clip(path / "v.mov", 12, codec="qtrle", pix_fmt="argb"), (160, 120)),
    "truncated": (lambda path: cut_in_the_middle(clip(path / "v.mkv", 12)), (160, 120)),
}


def odd_image(index: int) -> np.ndarray:
    return np.ascontiguousarray(draw_scene(((16 + index % 8, 0),))[:119, :153])


def cut_in_the_middle(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


@pytest.mark.parametrize("case", ODD_VIDEOS)
def test_odd_videos(cli, tmp_path, case):
    make, size = ODD_VIDEOS[case]
    done = cli(video=make(tmp_path))
    assert done.code == 0 and done.errors == []
    with av.open(done.out) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == size
        assert sum(1 for _ in container.decode(stream)) == 10


@pytest.mark.slow
def test_still_of_8k(cli, tmp_path):
    with Image.open(PORTRAIT) as image:
        image.convert("RGB").resize((7680, 7680)).save(tmp_path / "p.jpg")
    done = cli(video=tmp_path / "p.jpg")
    with av.open(done.out) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (4096, 4096)


@pytest.mark.parametrize(
    ("rate", "layout", "channels"), [(8000, "mono", 1), (96000, "stereo", 2), (44100, "5.1", 6), (48000, "7.1", 8)]
)
def test_unusual_audio(cli, tmp_path, rate, layout, channels):
    samples = np.stack([tone(rate, 0.4, 300 + 50 * channel) for channel in range(channels)])
    done = cli(audio=write_audio(tmp_path / "a.wav", samples, rate=rate, layout=layout))
    assert done.code == 0 and done.errors == []
    with av.open(done.out) as container:
        stream = container.streams.audio[0]
        assert (stream.rate, stream.codec_context.channels) == (rate, channels)


def test_silent_nonfinite_or_clipped_audio_is_reported(cli, tmp_path, caplog):
    broken = tone(16000, 0.4)
    broken[100:200] = np.nan
    for samples, message in (
        (np.zeros(6400, np.float32), "is silent"),
        (broken, "100 audio samples that are not numbers"),
        (50 * tone(16000, 0.4), "the audio is clipped"),
    ):
        caplog.clear()
        audio = write_audio(tmp_path / "a.wav", samples, codec="pcm_f32le")
        with caplog.at_level(logging.WARNING):
            assert cli(audio=audio).code == 0
        assert message in caplog.text


def test_odd_names(cli, media, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("""a b'";$(touch x)&ü文%d[1]*\\""", "-dash", "--crf", "a:b", os.fsdecode(b"\xff"))):
        shutil.copy(media / "clip.mp4", f"{name}.mp4")
        shutil.copy(media / "voice.wav", f"{name}.wav")
        done = cli(video=f"{name}.mp4", audio=f"{name}.wav", out=f"{name} {number}.mp4")
        assert done.code == 0 and done.errors == [] and (tmp_path / f"{name} {number}.mp4").stat().st_size > 1000
    assert not (tmp_path / "x").exists()


def unfinished(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob(".latentsync-*.mp4")]


@pytest.mark.parametrize("use_temp_dir", [False, True])
@pytest.mark.parametrize("signals", [["SIGINT"], ["SIGTERM"], ["SIGHUP"], ["SIGINT", "SIGINT", "SIGTERM"]])
def test_signals_leave_nothing_behind(cli, tmp_path, prior, monkeypatch, signals, use_temp_dir):
    """In the middle of a run, once the unfinished file has been begun; also when the user is impatient."""
    temp = tmp_path / "temp"
    temp.mkdir()
    begin, begun = LipsyncPipeline.begin, []
    sender = threading.Thread(target=lambda: [os.kill(os.getpid(), getattr(signal, name)) for name in signals])

    def interrupted(*args, **given):
        if not begun and unfinished(prior, temp):
            begun.extend(unfinished(prior, temp))
            sender.start()
        return begin(*args, **given)

    monkeypatch.setattr(LipsyncPipeline, "begin", interrupted)
    audio = write_audio(tmp_path / "long.wav", tone(16000, 60))
    stopped = cli(*([f"--temp_dir={temp}"] if use_temp_dir else []), audio=audio, out=prior / "o.mp4")
    sender.join()
    assert begun and (temp in begun[0].parents) == use_temp_dir
    assert (stopped.code, stopped.out) == (INTERRUPTED, "")
    assert stopped.errors == ["interrupted; nothing was written"]
    assert [entry.name for entry in prior.iterdir()] == ["o.mp4"] and (prior / "o.mp4").read_bytes() == b"old"
    assert not list(temp.iterdir())


def test_ignored_signals_stay_ignored(capsys):
    """As after `nohup`, or in a script's background job."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and callable(signal.getsignal(signal.SIGTERM))


def test_ctrl_c_in_a_separate_process(tiny_files, media, prior, tmp_path):
    """The same from outside, as `python -m scripts.inference` with a real detector."""
    audio = write_audio(tmp_path / "long.wav", tone(16000, 240))
    words = [f"--video_path={media / 'clip.mp4'}", f"--audio_path={audio}", f"--video_out_path={prior / 'o.mp4'}"]
    with subprocess.Popen(
        [sys.executable, "-m", "scripts.inference", *tiny_files.options, *words],
        cwd=PROJECT_ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            wait_for_progress(process)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=HANG_SECONDS)
        finally:
            process.kill()
    assert process.returncode == INTERRUPTED and out == b""
    assert without_progress(err.decode())[-1] == "interrupted; nothing was written"
    assert "Traceback" not in err.decode()
    assert [entry.name for entry in prior.iterdir()] == ["o.mp4"] and (prior / "o.mp4").read_bytes() == b"old"


def wait_for_progress(process: subprocess.Popen) -> None:
    """Return when the progress bar has counted a frame."""
    shown = b""
    while not re.search(rb"frame [1-9]\d*/6000", shown):
        piece = os.read(process.stderr.fileno(), 4096)
        assert piece, shown.decode()
        shown += piece
