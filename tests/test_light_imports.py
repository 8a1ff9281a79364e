"""Importing and running the pipeline leaves heavy libraries out, and those that are imported in part stay usable."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "transformers peft sympy torch._dynamo matplotlib gradio fastapi numba librosa tiktoken scipy.stats sounddevice "
    "pandas lpips insightface skimage torchvision IPython"
).split()


def run(code: str, *arguments: object) -> str:
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_a_run_imports_no_heavy_library(media, tiny_files, tmp_path):
    code = (
        "import sys; from latentsync import load_pipeline; from latentsync.loading import ModelPaths;"
        "names = 'unet unet_config vae whisper scheduler_config'.split();"
        "pipeline = load_pipeline(ModelPaths(**dict(zip(names, sys.argv[4:]))), 'cpu');"
        "pipeline(*sys.argv[1:4], options=None, inference_steps=2, max_seconds=0.1, solver='dpm++');"
        f"print('heavy', [name for name in {HEAVY} if sys.modules.get(name)])"
    )
    paths = [media / "clip.mp4", media / "voice.wav", tmp_path / "out.mp4", *vars(tiny_files).values()]
    assert run(code, *paths).splitlines()[-1] == "heavy []"


def test_a_name_alone_imports_next_to_nothing():
    code = "import sys, latentsync; print(latentsync.__version__, 'torch' in sys.modules)"
    assert run(code).split() == ["0.1.0", "False"]


def test_the_libraries_stay_whole_for_others():
    """After the light imports: other diffusers models, mediapipe's drawing, whisper's decoding."""
    code = (
        "import latentsync.loading;"
        "from latentsync.faces.mediapipe_graphs import import_mediapipe; import_mediapipe();"
        "import diffusers, mediapipe, whisper;"
        "from diffusers import AutoencoderKL, UNet2DModel;"
        "from diffusers.loaders import PeftAdapterMixin;"
        "from latentsync.models.vae import LatentCodec;"
        "tiny = dict(block_out_channels=[32], down_block_types=['DownEncoderBlock2D'],"
        " up_block_types=['UpDecoderBlock2D']);"
        "codec = LatentCodec(AutoencoderKL(**tiny));"
        "print(issubclass(AutoencoderKL, PeftAdapterMixin), callable(whisper.decode),"
        " callable(whisper.transcribe), mediapipe.Image.__name__,"
        " mediapipe.solutions.drawing_utils.DrawingSpec.__name__, mediapipe.solutions.face_mesh.FaceMesh.__name__,"
        " codec.factor, UNet2DModel.__name__)"
    )
    assert run(code).split() == "True True True Image DrawingSpec FaceMesh 1 UNet2DModel".split()
