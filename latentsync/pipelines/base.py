"""Base class of the pipelines: networks, device, memory modes, caching, LoRA adapters and compilation."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy, deepcopy
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from latentsync.models.compiled import use_channels_last
from latentsync.models.quantized import quantize_linear_layers
from latentsync.models.storage import store_in_fp8, store_on_host
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.vae import LatentCodec
from latentsync.options import GenerationOptions, Weights
from latentsync.pipelines.components import (
    ModelPaths,
    check_compatibility,
    load_components,
    multiplies_bfloat16,
    pick_devices,
    pick_dtype,
    pick_enhancer,
)
from latentsync.pipelines.lora_adapters import LoraMixin
from latentsync.pipelines.presets import preset_adapter
from latentsync.pipelines.progress import Speeds
from latentsync.pipelines.sampling import few_step_schedule
from latentsync.pretrained.enhancers import FaceEnhancer
from latentsync.utils.errors import UserError
from latentsync.utils.light_diffusers import DDIMScheduler
from latentsync.whisper.audio2feature import Audio2Feature

logger = logging.getLogger(__name__)

DEEPCACHE_INTERVAL = 3


class PipelineBase(LoraMixin):
    """Holds the networks of a model. Methods that change the configuration return the pipeline itself.

    Args:
        vae: autoencoder, or a `LatentCodec` that wraps it.
        audio_encoder: Whisper feature extractor.
        unet: denoising UNet; see `unet_input` for its input channels.
        scheduler: DDIM scheduler with the training configuration of the UNet.
        resolution: side of the aligned faces in pixels; by default derived from the UNet's `sample_size`.
        num_inference_steps, guidance_scale: defaults of the model, overridden by the options.
        blend_inset: distance between blending edge and mask edge, as a fraction of the face's side; see
            `blend_weight`.
        match_color: match the skin color of generated faces to the frame, regardless of the options.
        match_detail: restore the detail of the frames in generated faces, unless an enhancer is used; see
            `latentsync.faces.texture.DetailRestorer`.
        one_step: the UNet was trained for one evaluation without guidance; the options inference_steps and
            guidance_scale have no effect.
        few_steps: the UNet was distilled to `num_inference_steps` evaluations without guidance at the timesteps of
            `few_step_schedule`; the options inference_steps, guidance_scale and solver have no effect.
        enhancer: applied to generated faces before they are pasted back.

    Raises:
        UserError: UNet, autoencoder and audio encoder are incompatible.
    """

    def __init__(
        self,
        vae: nn.Module,
        audio_encoder: Audio2Feature,
        unet: UNet3DConditionModel,
        scheduler: DDIMScheduler,
        resolution: int | None = None,
        *,
        num_inference_steps: int = 20,
        guidance_scale: float = 1.5,
        blend_inset: float = 0.0,
        match_color: bool = False,
        match_detail: bool = False,
        one_step: bool = False,
        few_steps: bool = False,
        enhancer: FaceEnhancer | None = None,
    ) -> None:
        self.codec = vae if isinstance(vae, LatentCodec) else LatentCodec(vae)
        self.audio_encoder, self.unet, self.enhancer = audio_encoder, unet, enhancer
        self.scheduler = few_step_schedule(scheduler) if few_steps else scheduler
        self.resolution = resolution or unet.config.sample_size * self.codec.factor
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.blend_inset, self.match_color, self.match_detail = blend_inset, match_color, match_detail
        self.one_step, self.few_steps = one_step, few_steps
        self.name = "custom"
        self._enhancers: dict[str | None, FaceEnhancer] = {}
        self._original_weights, self._original_sampling = {}, {}
        self._vram_efficient = self._is_quantized = False
        self._weights: Weights = "full"
        self._compile_options: dict[str, Any] | None = None  # if compiled
        self._copies: list[Self] = []  # on further devices
        self._chunk_memory: dict[tuple, tuple[int, int]] = {}  # bytes of one and of two, by shape and modes
        self._speeds: dict[tuple, Speeds] = {}  # by the settings that they depend on
        check_compatibility(unet, self.codec, audio_encoder)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | ModelPaths | None = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        *,
        deepcache: bool = False,
        low_memory: bool = False,
        match_color: bool = False,
        upscale: bool = False,
        enhancer: str | None = None,
        lora: str | Path | None = None,
        lora_scale: float = 1.0,
        preset: str = "best",
        weights: Weights = "full",
        quantize: bool = False,
        compile: bool = False,
        audio_cache_dir: str | Path | None = None,
    ) -> Self:
        """Load a pipeline. Logs the model, the reason for its selection, the device and the data type.

        Args:
            model: a registered name (latentsync-1.6, latentsync-1.5, embedded), a model folder (see
                `components.FOLDER_LAYOUT`), a Hugging Face Hub id, single files as `ModelPaths`, or None for the best
                available model that fits the device.
            device: cuda, cuda:N, mps or cpu; None or "auto" selects the best available. Several, separated by commas,
                share the chunks of a video; see `use_devices`.
            dtype: data type of UNet and autoencoder; by default float32 on the CPU and float16 otherwise. The
                embedded model's default on CPUs with instructions for bfloat16 is that of `cast_networks`.
            deepcache: see `enable_deepcache`.
            low_memory: see `enable_vram_efficient`.
            match_color: match the skin color of generated faces to the frame, regardless of the model's default.
            upscale: apply an enhancer to generated faces before they are pasted back.
            enhancer: realesrgan (4x upscaling) or gfpgan (restoration). By default realesrgan, or a sharpness
                filter if its weights are missing.
            lora, lora_scale: see `load_lora_weights`.
            preset: realtime merges the model's adapter for a few steps, if it is present; see `preset_adapter`.
            weights: see `store_weights`.
            quantize, compile: see the methods of these names.
            audio_cache_dir: folder for cached audio features, keyed by file content.

        Raises:
            UserError: unknown name, missing or incompatible files, or unavailable device.
        """
        target, *others = pick_devices(device)
        components = load_components(model, target, audio_cache_dir)
        settings = components.model
        casts = dtype is None and components.run.cpu_bfloat16 and target.type == "cpu" and multiplies_bfloat16()
        dtype = dtype or pick_dtype(target)
        precision = _name(torch.bfloat16 if casts else dtype)
        logger.info("model %s (%s) on %s, %s", settings.name, components.reason, target, precision)
        pipeline = cls(
            components.codec,
            components.audio_encoder,
            components.unet,
            components.scheduler,
            components.resolution,
            num_inference_steps=components.run.inference_steps,
            guidance_scale=components.run.guidance_scale,
            blend_inset=settings.blend_inset,
            match_color=match_color or settings.match_color,
            match_detail=settings.match_detail,
            one_step=components.run.one_step,
            few_steps=components.run.few_steps,
            enhancer=pick_enhancer(enhancer) if upscale else None,
        )
        pipeline.name = settings.name
        if (adapter := preset_adapter(preset, settings.name)) is not None:
            pipeline.load_lora_weights(adapter)
        if lora is not None:
            pipeline.load_lora_weights(lora, lora_scale)
        if deepcache:
            pipeline.enable_deepcache()
        if low_memory:
            pipeline.enable_vram_efficient()
        pipeline.to(target, dtype)
        if casts:
            pipeline.cast_networks(torch.bfloat16)
        if quantize:
            pipeline.quantize()
        if compile:
            pipeline.compile()
        return pipeline.use_devices(others).store_weights(weights)

    def __repr__(self) -> str:
        modes = {
            "deepcache": self.unet.uses_deepcache,
            "vram_efficient": self._vram_efficient,
            "lora": bool(self._original_weights),
            f"weights {self._weights}": self._weights != "full",
            "quantized": self._is_quantized,
            "compiled": self._is_compiled,
        }
        extra = "".join(f", {name}" for name, is_on in modes.items() if is_on)
        return f"{type(self).__name__}({self.name}, {self.device}, {_name(self.unet.dtype)}{extra})"

    @property
    def device(self) -> torch.device:
        return self.codec.device

    @property
    def devices(self) -> list[torch.device]:
        """The devices that the chunks of a video are generated on, in turn."""
        return [self.device, *(other.device for other in self._copies)]

    @property
    def _is_compiled(self) -> bool:
        return self._compile_options is not None

    @property
    def dtype(self) -> torch.dtype:
        return self.codec.dtype

    def to(self, device: str | torch.device | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move or cast all networks, like `torch.nn.Module.to`. The audio encoder stays in float32.

        Raises:
            UserError: after `store_weights`.
        """
        self._check_weights("moved or cast")
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        self.codec.to(device, dtype)
        self.unet.to(device, dtype)
        if self.device.type == "cuda":
            use_channels_last(self.unet)
        if self.codec.is_local:
            use_channels_last(self.codec)
        if device is not None:
            self.audio_encoder.to(device)
        for enhancer in (self.enhancer, *self._enhancers.values()):
            if enhancer is not None:
                enhancer.to(self.device, dtype)
        return self

    def cast_networks(self, dtype: torch.dtype) -> Self:
        """Cast the UNet and the convolutions of a local decoder alone; pixels, latents and the sampler keep their type.

        The faces of the embedded model change by about one level of 255.
        """
        self._check_weights("cast")
        self.unet.to(dtype)
        if self.codec.is_local:
            self.codec.vae.decoder.cast_convolutions(dtype)
        return self

    def enable_deepcache(self, interval: int = DEEPCACHE_INTERVAL, branch: int = 0) -> Self:
        """Reuse deep UNet features across steps: up to twice as fast, slightly softer. See `models.deepcache`."""
        self.unet.enable_deepcache(interval, branch)
        return self

    def disable_deepcache(self) -> Self:
        self.unet.disable_deepcache()
        return self

    def enable_vae_slicing(self) -> Self:
        """Encode and decode images one by one."""
        self.codec.enable_slicing()
        return self

    def disable_vae_slicing(self) -> Self:
        self.codec.disable_slicing()
        return self

    def enable_vae_tiling(self) -> Self:
        """Encode and decode large images in tiles."""
        self.codec.enable_tiling()
        return self

    def disable_vae_tiling(self) -> Self:
        self.codec.disable_tiling()
        return self

    def enable_vram_efficient(self) -> Self:
        """Minimize device memory: VAE slicing and tiling, guidance in two passes, and a single chunk at a time (ignores
        `chunk_batch_size`)."""
        self._vram_efficient = True
        return self.enable_vae_slicing().enable_vae_tiling()

    def disable_vram_efficient(self) -> Self:
        self._vram_efficient = False
        return self.disable_vae_slicing().disable_vae_tiling()

    def store_weights(self, weights: Weights) -> Self:
        """Store the UNet's weights in less device memory, see `models.storage`: "fp8" in 8 bits, "host" on the host.

        "full" changes nothing. Call it last; it cannot be undone, nor combined with `quantize`, `compile` and several
        devices.

        Raises:
            UserError: combined with one of these.
        """
        if weights == self._weights:
            return self
        self._check_weights("stored again")
        others = {"quantize": self._is_quantized, "compile": self._is_compiled, "several devices": self._copies}
        if conflict := next((name for name, is_on in others.items() if is_on), None):
            raise UserError(f"weights {weights} and {conflict} exclude each other; leave one of them out")
        if weights == "fp8":
            store_in_fp8(self.unet)
        else:
            store_on_host(self.unet, self.device)
        self._weights = weights
        self._chunk_memory.clear()
        self._speeds.clear()
        return self

    def _check_weights(self, change: str) -> None:
        if self._weights != "full":
            raise UserError(f"weights {self._weights}: the model can no longer be {change}; load it again")

    def quantize(self) -> Self:
        """Compute the linear layers of the UNet in 8 bits, see `models.quantized`: faster on a GPU when compiled.

        Call it after `to` and `load_lora_weights`, before `compile`.

        Raises:
            UserError: torchao is not installed.
        """
        self._check_weights("quantized")
        logger.info("linear layers in %s", quantize_linear_layers(self.unet))
        self._is_quantized = True
        return self

    def compile(self, **options: Any) -> Self:
        """Compile UNet and autoencoder in place, with weights in channels-last format.

        Whole chunks run compiled, batches of them padded to `chunk_batch_size`. The shorter chunk at the end of a run
        of faces runs uncompiled, so that no shape is compiled for it. The first chunk takes minutes; with the cache of
        an earlier process (TORCHINDUCTOR_CACHE_DIR) less. Where the compiler fails, the model runs uncompiled.

        Args:
            options: passed to `torch.compile`, e.g. mode="max-autotune-no-cudagraphs".
        """
        self._check_weights("compiled")
        use_channels_last(self.unet)
        use_channels_last(self.codec)
        self.unet.compile(**options)
        self.codec.compile(**options)
        self._compile_options = options
        return self

    def use_devices(self, devices: Sequence[str | torch.device]) -> Self:
        """Share the chunks of a video between this device and further ones, in turn, with copies of the networks.

        The result is the same, up to rounding: chunks are denoised independently. Call it last: later changes of
        weights and modes do not reach the copies until it is called again. `speak` uses this device alone.
        """
        if devices:
            self._check_weights("copied to other devices")
        self._copies = [self._copy_to(torch.device(device)) for device in devices]
        self._speeds.clear()
        return self

    def _copy_to(self, device: torch.device) -> Self:
        other = copy(self)
        other.codec, other.unet = deepcopy(self.codec).to(device), deepcopy(self.unet).to(device)
        other.enhancer = None if self.enhancer is None else deepcopy(self.enhancer).to(device)
        other._enhancers, other._copies, other._original_weights = {}, [], {}
        if self._compile_options is not None:
            other.compile(**self._compile_options)
        return other

    @contextmanager
    def _modes(self, options: GenerationOptions) -> Iterator[None]:
        """Context that enables the modes requested by `options`."""
        with ExitStack() as stack:
            if options.enable_deepcache and not self.unet.uses_deepcache:
                stack.enter_context(self.unet.deepcache(DEEPCACHE_INTERVAL))
            if options.vram_efficient and not self._vram_efficient:
                stack.enter_context(self.codec.low_memory())
            yield

    def _enhancer(self, options: GenerationOptions) -> FaceEnhancer | None:
        """The enhancer requested by `options`, loaded once; by default that of the pipeline."""
        if not options.enable_upscale or (self.enhancer is not None and options.enhancer in (None, self.enhancer.name)):
            return self.enhancer
        if options.enhancer not in self._enhancers:
            self._enhancers[options.enhancer] = pick_enhancer(options.enhancer).to(self.device, self.dtype)
        return self._enhancers[options.enhancer]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
