"""The pipeline as a library: faces, streams and arrays, options, modes, loading from a folder or the hub."""

from itertools import islice

import huggingface_hub
import numpy as np
import pytest
import torch

from latentsync.loading import load_pipeline
from latentsync.models.lora import add_lora, save_lora
from latentsync.models.unet import UNet3DConditionModel
from latentsync.options import GenerationOptions
from latentsync.pipelines import components
from latentsync.pipelines.components import ModelPaths, find_components
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
from latentsync.pipelines.result import LipsyncResult
from latentsync.pipelines.sampling import Sampling
from latentsync.utils.errors import UserError
from latentsync.utils.light_diffusers import DDIMScheduler
from tests.media.synthetic import tone
from tests.pipelines.scenes import draw_scene
from tests.tiny_model import UNET

FAST = GenerationOptions(inference_steps=1, guidance_scale=1.0)
SIDE = 64


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (18, SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope="module")
def wave() -> np.ndarray:
    return tone(16000, 0.72).astype(np.float32)


@pytest.fixture
def fresh(tiny_files) -> LipsyncPipeline:
    """A pipeline that a test may change."""
    return load_pipeline(ModelPaths(**vars(tiny_files)), "cpu")


def test_speak_takes_a_waveform_or_tokens(pipeline, faces, wave):
    tokens = pipeline.audio_encoder.stream(wave, 25, 18).chunks(0, 18)
    made = pipeline.speak(faces, wave, options=FAST)
    assert made.shape == faces.shape and made.dtype == torch.float32 and 0 <= made.min() and made.max() <= 255
    assert torch.equal(made, pipeline.speak(torch.from_numpy(faces), tokens, options=FAST))
    chunks = pipeline.speak(faces[None, :16], tokens[None, :16], options=FAST)
    assert (chunks[0, :14] - made[:14]).abs().max() < 0.01  # the other two are shared with the next chunk
    assert not torch.equal(made, pipeline.speak(faces, wave, options=FAST, seed=5))


def test_speak_in_batches_of_chunks(pipeline, faces, wave):
    one = pipeline.speak(faces, wave, options=FAST, num_frames=4)
    many = pipeline.speak(faces, wave, options=FAST, num_frames=4, chunk_batch_size=3)
    assert (one - many).abs().max() < 0.5


def test_speak_with_a_reference(pipeline, faces, wave):
    own = pipeline.speak(faces[:4], wave, options=FAST)
    assert torch.equal(own, pipeline.speak(faces[:4], wave, faces[:4], FAST))
    assert not torch.equal(own, pipeline.speak(faces[:4], wave, faces[4:8], FAST))
    with pytest.raises(ValueError, match="does not match the faces"):
        pipeline.speak(faces[:4], wave, faces[:3], FAST)
    with pytest.raises(ValueError, match="must be"):
        pipeline.speak(faces[0], wave)


def test_frames_are_those_of_the_file(pipeline, media, written, tmp_path):
    inputs = (media / "clip.mp4", media / "voice.wav")
    streamed = list(pipeline.frames(*inputs, FAST))
    result = pipeline(*inputs, tmp_path / "out.mp4", options=FAST)
    assert result.num_frames == len(streamed) == 10
    assert all(np.array_equal(frame.i420, other) for frame, other in zip(streamed, written, strict=True))


def test_frames_come_as_they_are_ready_and_stop_when_closed(pipeline, spoken, media):
    stream = pipeline.frames(media / "clip.mp4", (tone(16000, 4), 16000), FAST, num_frames=4)
    assert len(list(islice(stream, 5))) == 5
    assert spoken == [(1, 4)] * 3  # two frames of each are left to the next one
    stream.close()
    assert spoken == [(1, 4)] * 3


def test_arrays_in_arrays_out(pipeline, wave, tmp_path):
    frames = np.stack([draw_scene(((16 + index % 8, 0),)) for index in range(6)])
    made = np.stack([np.asarray(frame) for frame in pipeline.frames((frames, 25), (wave[:3840], 16000), FAST)])
    changed = (made != frames).any(axis=(0, 3))
    assert changed.any() and not changed[:20].any() and not changed[:, :30].any()
    lazily = pipeline.frames((iter(torch.from_numpy(frames)), 25), (torch.from_numpy(wave[:3840]), 16000), FAST)
    assert np.array_equal(np.stack([np.asarray(frame) for frame in lazily]), made)
    result = pipeline((frames, 25), (wave[:3840], 16000), tmp_path / "out.mp4", options=FAST)
    assert (result.num_frames, result.faces) == (6, 6) and "<video" in result._repr_html_()
    with pytest.raises(UserError, match="frames: no face was found"):
        list(pipeline.frames((np.full_like(frames, 90), 25), (wave[:3840], 16000), FAST))


def test_keywords_override_options(pipeline, media, tmp_path):
    seen = []
    options = GenerationOptions(inference_steps=5, guidance_scale=1.0, max_seconds=0.2)
    result = pipeline(
        media / "clip.mp4",
        media / "voice.wav",
        tmp_path / "out.mp4",
        num_inference_steps=2,
        options=options,
        callback=lambda step, *_: seen.append(step),
    )
    assert seen == [0, 1] and result.num_frames == 5


def test_callback_on_step_end(pipeline, faces, wave):
    seen = []

    def replace(pipe, step, timestep, values):
        seen.append((pipe is pipeline, step, timestep))
        return {"latents": torch.zeros_like(values["latents"])} if step == 1 else None

    zeroed = pipeline.speak(
        faces[:2], wave, options=FAST, inference_steps=2, callback_on_step_end=replace, match_color=False
    )
    assert [item[:2] for item in seen] == [(True, 0), (True, 1)] and seen[0][2] > seen[1][2]
    assert not torch.equal(zeroed, pipeline.speak(faces[:2], wave, options=FAST, inference_steps=2))


def test_modes_on_the_pipeline_and_by_options(fresh, faces, wave):
    def speak(**options):
        return fresh.speak(faces[:2], wave, options=GenerationOptions(inference_steps=4, guidance_scale=1.0, **options))

    plain = speak()
    cached = speak(enable_deepcache=True)
    assert not torch.equal(plain, cached) and not fresh.unet.uses_deepcache
    assert torch.equal(cached, (fresh.enable_deepcache() and speak()))
    assert torch.equal(plain, (fresh.disable_deepcache() and speak()))
    assert (plain - speak(vram_efficient=True)).abs().max() < 0.5 and not fresh.codec.vae.use_slicing
    fresh.enable_vram_efficient()
    assert fresh.codec.vae.use_slicing and fresh.codec.vae.use_tiling and "vram_efficient" in repr(fresh)
    assert fresh._prepare(None, chunk_batch_size=4).chunks_at_once == 1
    fresh.disable_vram_efficient().enable_vae_tiling()
    assert fresh.codec.vae.use_tiling and not fresh.codec.vae.use_slicing
    assert not fresh.disable_vae_tiling().codec.vae.use_tiling
    assert fresh.enable_vae_slicing().codec.vae.use_slicing and not fresh.disable_vae_slicing().codec.vae.use_slicing


def test_to_and_repr(fresh, tiny_files):
    assert repr(fresh) == f"LipsyncPipeline({tiny_files.unet}, cpu, float32)"
    assert fresh.to(torch.bfloat16) is fresh and fresh.unet.dtype == fresh.dtype == torch.bfloat16
    assert fresh.to("cpu", torch.float32).dtype == torch.float32 and fresh.to("cpu").unet.dtype == torch.float32


def test_lora_is_loaded_and_unloaded(fresh, tiny_files, tmp_path):
    unet, _ = UNet3DConditionModel.from_pretrained(UNET, tiny_files.unet)
    parameters = add_lora(unet, rank=2, targets=["attn2.to_v"])
    for parameter in parameters:
        torch.nn.init.ones_(parameter)
    save_lora(unet, tmp_path / "adapter.safetensors")
    before = {name: value.clone() for name, value in fresh.unet.state_dict().items()}
    fresh.load_lora_weights(tmp_path / "adapter.safetensors", 0.5)
    once = {name: value.clone() for name, value in fresh.unet.state_dict().items()}
    changed = [name for name in before if not torch.equal(before[name], once[name])]
    assert changed and all("attn2.to_v" in name for name in changed) and "lora" in repr(fresh)
    fresh.load_lora_weights(tmp_path / "adapter.safetensors", 0.5).unload_lora_weights()
    assert all(torch.equal(value, before[name]) for name, value in fresh.unet.state_dict().items())
    assert "lora" not in repr(fresh)


def test_compile_keeps_the_result(fresh, faces, wave):
    """Batches of whole chunks are padded to one shape, the rest runs uncompiled, and nothing is compiled again."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    options = {"options": FAST, "num_frames": 4, "chunk_batch_size": 3, "chunk_overlap": 0}
    overlapping = fresh.speak(faces, wave, **options | {"chunk_overlap": 2})
    plain = fresh.speak(faces, wave, **options)
    names = list(fresh.unet.state_dict()), list(fresh.codec.state_dict())
    compiled = fresh.compile(backend=backend).speak(faces, wave, **options)
    assert (plain - compiled).abs().max() < 0.01
    assert (list(fresh.unet.state_dict()), list(fresh.codec.state_dict())) == names and "compiled" in repr(fresh)
    assert fresh.unet.conv_out.weight.is_contiguous(memory_format=torch.channels_last)
    compiled_once = len(graphs)
    assert compiled_once >= 3  # UNet, encoder, decoder
    fresh.speak(faces[:10], wave, **options)
    assert len(graphs) == compiled_once
    assert (fresh.speak(faces, wave, **options | {"chunk_overlap": 2}) - overlapping).abs().max() < 0.01


def test_an_enhancer_is_loaded_once_for_the_calls_that_ask_for_it(fresh, faces, wave, monkeypatch):
    opened = []

    class Doubler:
        name = "realesrgan"

        def to(self, *_):
            return self

        def __call__(self, pixels):
            return pixels.repeat_interleave(2, -1).repeat_interleave(2, -2)

    monkeypatch.setattr(components, "open_enhancer", lambda name: opened.append(name) or Doubler())
    monkeypatch.setattr(components, "can_upscale", lambda: True)
    sizes = [
        fresh.speak(faces[:1], wave, options=FAST, enable_upscale=on).shape[1] for on in (False, True, True, False)
    ]
    assert sizes == [SIDE, 2 * SIDE, 2 * SIDE, SIDE] and opened == ["realesrgan"]


def as_folder(files, folder):
    """The tiny model in the layout of a folder."""
    folder.mkdir()
    for source, name in (
        (files.unet, "unet.pt"),
        (files.unet_config, "unet_config.yaml"),
        (files.vae, "vae"),
        (files.whisper, "whisper.pt"),
        (files.scheduler_config, "scheduler_config.json"),
    ):
        (folder / name).symlink_to(source)
    return folder


def test_from_a_folder_and_from_the_hub(tiny_files, faces, wave, fresh, tmp_path, monkeypatch):
    folder = as_folder(tiny_files, tmp_path / "model")
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **o: asked.append((repo, o)) or str(folder))
    expected = fresh.speak(faces[:2], wave, options=FAST)
    for source in (folder, str(folder), "someone/tiny-lipsync"):
        loaded = LipsyncPipeline.from_pretrained(source, "cpu")
        assert loaded.resolution == SIDE and torch.equal(loaded.speak(faces[:2], wave, options=FAST), expected)
    assert [repo for repo, _ in asked] == ["someone/tiny-lipsync"]
    assert {"unet.safetensors", "vae/*", "scheduler_config.json"} <= set(asked[0][1]["allow_patterns"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no UNet in this folder"):
        find_components(tmp_path / "empty")


def test_hub_errors_are_one_line(monkeypatch):
    def fail(*_, **__):
        raise OSError("no such\nrepository")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=r"someone/none: download from .* failed .*no such\\nrepository"):
        LipsyncPipeline.from_pretrained("someone/none", "cpu")


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_dpm_has_the_schedule_of_the_trained_scheduler(prediction, zero_snr):
    """With exact predictions of a known image, both solvers end at that image."""
    trained = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    solver = Sampling(4, 1.0, solver="dpm++").scheduler(trained)
    names = ("rescale_betas_zero_snr", "prediction_type", "timestep_spacing", "steps_offset", "beta_schedule")
    assert {name: solver.config[name] for name in names} == {name: trained.config[name] for name in names}
    torch.testing.assert_close(solver.alphas_cumprod[:-1], trained.alphas_cumprod[:-1])
    image, noise = torch.tensor([0.7, -0.4]), torch.tensor([1.0, 0.3])
    solver.set_timesteps(4)
    latents = noise.clone()
    for timestep in solver.timesteps:
        alpha = solver.alphas_cumprod[timestep].sqrt()
        sigma = (1 - solver.alphas_cumprod[timestep]).sqrt()
        guess = (latents - alpha * image) / sigma
        value = {"sample": image, "epsilon": guess, "v_prediction": alpha * guess - sigma * image}[prediction]
        latents = solver.step(value, timestep, latents).prev_sample
    torch.testing.assert_close(latents, image, atol=2e-2, rtol=0)


def test_a_result_without_a_small_file_is_text(tmp_path):
    missing = LipsyncResult(tmp_path / "<none>.mp4", 3, 3, 25)
    assert missing._repr_html_().startswith("<p>") and "&lt;none&gt;" in missing._repr_html_()
