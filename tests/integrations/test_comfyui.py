"""The ComfyUI nodes, run with tensors in ComfyUI's conventions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, nodes
from latentsync.loading import ModelPaths, load_pipeline
from latentsync.options import OPTIONS, GenerationOptions
from tests.media.synthetic import tone
from tests.pipelines.scenes import draw_scene

KINDS = {"INT", "FLOAT", "STRING", "BOOLEAN", "IMAGE", "AUDIO", nodes.PIPELINE}


@pytest.fixture
def pipeline(tiny_files, shared_detector, monkeypatch):
    monkeypatch.setattr(
        nodes, "load_pipeline", lambda name, device, **options: load_pipeline(ModelPaths(**vars(tiny_files)), "cpu")
    )
    (loaded,) = nodes.LoadModel().load("auto", "cpu")
    return loaded


def silence(seconds: float, channels: int = 1) -> dict:
    wave = torch.from_numpy(np.stack([tone(16000, seconds)] * channels)).float()
    return {"waveform": wave[None], "sample_rate": 16000}


def test_images_and_audio(pipeline):
    frames = np.stack([draw_scene(((16 + index, 0),)) for index in range(4)])
    images = torch.from_numpy(frames).float() / 255
    settings = {
        "inference_steps": 1,
        "guidance_scale": 1.0,
        "mask_image_path": "",
        "interpolate": 0,
        "enhancer": "default",
    }
    made, audio, fps = nodes.LipSync().run(pipeline, images, silence(0.24, 2), 25.0, **settings)
    assert made.shape == (6, *images.shape[1:]) and made.dtype == torch.float32
    assert 0 <= made.min() and made.max() <= 1 and fps == 25.0
    assert audio["sample_rate"] == 16000 and audio["waveform"].shape == (1, 2, 3840)
    order = [0, 1, 2, 3, 3, 2]  # shorter than the audio: forward, then backward
    touched = (made - images[order]).abs().amax(dim=(0, 3)) > 1 / 255
    assert touched.any() and not touched[:20].any() and not touched[:, :30].any()
    assert torch.equal(made[:, :20], images[order][:, :20])  # pixels outside the face stay as they are


def test_odd_sizes_and_frame_rate(pipeline):
    frames = np.stack([draw_scene(((16, 0),))[:119, :159]] * 2)
    images = torch.from_numpy(frames).float() / 255
    settings = {"inference_steps": 1, "guidance_scale": 1.0, "keep_fps": True}
    made, _, fps = nodes.LipSync().run(pipeline, images, silence(0.2), 30.0, **settings)
    assert made.shape == (6, 119, 159, 3) and fps == 30.0


def test_inputs_follow_the_declaration():
    loader = nodes.LoadModel.INPUT_TYPES()["required"]
    lip_sync = nodes.LipSync.INPUT_TYPES()
    assert set(loader) - {"device"} == {"model", "lora", "lora_scale"}
    shown = set(loader) | set(lip_sync["optional"]) | nodes.LEFT_OUT
    assert shown - {"device"} == set(GenerationOptions.model_fields)
    for kind, *settings in [*loader.values(), *lip_sync["required"].values(), *lip_sync["optional"].values()]:
        assert isinstance(kind, list) or kind in KINDS
        if settings and isinstance(kind, list):
            assert settings[0]["default"] in kind
    defaults = {name: settings[0]["default"] for name, (_, *settings) in lip_sync["optional"].items()}
    assert GenerationOptions(**nodes.read_options(defaults)) == GenerationOptions()
    kinds = {name: kind for name, (kind, _) in lip_sync["optional"].items()}
    assert (kinds["chunk_batch_size"], kinds["inference_steps"], kinds["interpolate"]) == ("STRING", "INT", "FLOAT")
    assert nodes.read_options({"chunk_batch_size": "auto"}) == {"chunk_batch_size": "auto"}
    for name, (kind, settings) in lip_sync["optional"].items():
        if kind in ("INT", "FLOAT") and OPTIONS[name].default is None:
            assert settings["tooltip"].endswith(f" 0: {OPTIONS[name].show.unset}.")


def test_nodes_have_the_attributes_of_comfyui():
    assert NODE_CLASS_MAPPINGS.keys() == NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in NODE_CLASS_MAPPINGS.values():
        assert callable(getattr(node(), node.FUNCTION)) and len(node.RETURN_TYPES) == len(node.RETURN_NAMES)


def test_a_batch_of_audio_is_refused(pipeline):
    audio = silence(0.2)
    audio["waveform"] = audio["waveform"].repeat(2, 1, 1)
    with pytest.raises(ValueError, match="must be one waveform"):
        nodes.LipSync().run(pipeline, torch.zeros(2, 16, 16, 3), audio, 25.0)


def test_the_package_stands_alone():
    """ComfyUI imports the folder under a name of its own."""
    folder = Path(nodes.__file__).parent
    assert (folder / "README.md").is_file() and "from .nodes import" in (folder / "__init__.py").read_text()
