"""The networks of a pipeline and how they run: device, memory, caching, adapters, compilation."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from latentsync.models.lora import PROJECTIONS, find_projections, load_lora
from latentsync.models.unet import UNet3DConditionModel
from latentsync.models.vae import LatentCodec
from latentsync.options import GenerationOptions
from latentsync.pipelines.parts import ModelPaths, load_parts, pick_device, pick_dtype, pick_enhancer
from latentsync.pretrained.enhancers import FaceEnhancer
from latentsync.utils.errors import UserError
from latentsync.utils.light_diffusers import DDIMScheduler
from latentsync.whisper.audio2feature import Audio2Feature

logger = logging.getLogger(__name__)

DEEPCACHE_INTERVAL = 3


class PipelineBase:
    """Holds the networks of one model. Methods that change how they run return the pipeline.

    Args:
        vae: autoencoder, or the `LatentCodec` around it.
        audio_encoder: Whisper features.
        unet: denoiser; its inputs are two latents more than the autoencoder's channels, see `unet_input`.
        scheduler: DDIM with the configuration the UNet was trained with.
        resolution: side of the aligned faces in pixels; by default from the UNet's `sample_size`.
        num_inference_steps, guidance_scale: the model's own settings, used where the options give none.
        blend_inset: distance of the paste's edge from the mask's edge, as a share of the face's side; see
            `blend_weight`.
        match_color: match the skin color of generated faces to the frame, whatever the options say.
        enhancer: applied to generated faces before they are pasted back.

    Raises:
        UserError: UNet, autoencoder and audio encoder do not fit each other.
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
        enhancer: FaceEnhancer | None = None,
    ) -> None:
        self.codec = vae if isinstance(vae, LatentCodec) else LatentCodec(vae)
        self.audio_encoder, self.unet, self.scheduler, self.enhancer = audio_encoder, unet, scheduler, enhancer
        self.resolution = resolution or unet.config.sample_size * self.codec.factor
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.blend_inset, self.match_color = blend_inset, match_color
        self.name = "custom"
        self._enhancers: dict[str | None, FaceEnhancer] = {}
        self._before_lora: dict[str, Tensor] = {}
        self._vram_efficient = False
        self._check_fit()

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
        audio_cache_dir: str | Path | None = None,
    ) -> Self:
        """Build a ready pipeline. One log line says which model runs where.

        Args:
            model: a registered name (latentsync-1.6, latentsync-1.5, embedded), a folder with the parts of a model
                (see `parts.FOLDER_LAYOUT`), an id on the Hugging Face Hub, single files as `ModelPaths`, or None for
                the best model that is present and fits the device.
            device: cuda, cuda:N, mps, cpu; None or "auto" picks the best available.
            dtype: of the UNet and the autoencoder; by default float32 on the CPU, float16 elsewhere.
            deepcache: see `enable_deepcache`.
            low_memory: see `enable_vram_efficient`.
            match_color: match the skin color of generated faces to the frame, whatever the model's own setting.
            upscale: enhance generated faces with a network before they are pasted back.
            enhancer: realesrgan (four times larger) or gfpgan (restored). By default realesrgan, or only the
                sharpness filter where its weights are missing.
            lora, lora_scale: see `load_lora_weights`.
            audio_cache_dir: folder for the audio features of files, named by content.

        Raises:
            UserError: unknown name, missing or unfit files, device not available.
        """
        target = pick_device(device)
        dtype = dtype or pick_dtype(target)
        parts = load_parts(model, target, audio_cache_dir)
        settings = parts.model
        logger.info("model %s (%s) on %s, %s", settings.name, parts.reason, target, str(dtype).removeprefix("torch."))
        pipeline = cls(
            parts.codec,
            parts.audio_encoder,
            parts.unet,
            parts.scheduler,
            parts.resolution,
            num_inference_steps=settings.inference_steps,
            guidance_scale=settings.guidance_scale,
            blend_inset=settings.blend_inset,
            match_color=match_color or settings.match_color,
            enhancer=pick_enhancer(enhancer) if upscale else None,
        )
        pipeline.name = settings.name
        if lora is not None:
            pipeline.load_lora_weights(lora, lora_scale)
        if deepcache:
            pipeline.enable_deepcache()
        if low_memory:
            pipeline.enable_vram_efficient()
        return pipeline.to(target, dtype)

    def __repr__(self) -> str:
        dtype = str(self.codec.dtype).removeprefix("torch.")
        modes = {
            "deepcache": self.unet.uses_deepcache,
            "vram_efficient": self._vram_efficient,
            "lora": bool(self._before_lora),
        }
        extra = "".join(f", {name}" for name, is_on in modes.items() if is_on)
        return f"{type(self).__name__}({self.name}, {self.device}, {dtype}{extra})"

    @property
    def device(self) -> torch.device:
        return self.codec.device

    @property
    def dtype(self) -> torch.dtype:
        return self.codec.dtype

    def to(self, device: str | torch.device | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move or cast all networks: `to(device)`, `to(dtype)`, `to(device, dtype)`. Audio features stay float32."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        self.codec.to(device, dtype)
        self.unet.to(device, dtype)
        if device is not None:
            self.audio_encoder.to(device)
        for enhancer in (self.enhancer, *self._enhancers.values()):
            if enhancer is not None:
                enhancer.to(self.device, dtype)
        return self

    def enable_deepcache(self, interval: int = DEEPCACHE_INTERVAL, branch: int = 0) -> Self:
        """Reuse deep UNet features between steps: up to twice as fast, slightly softer. See `models.deepcache`."""
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
        """Use the least device memory: VAE slicing and tiling, one chunk at a time whatever `chunk_batch_size` says."""
        self._vram_efficient = True
        return self.enable_vae_slicing().enable_vae_tiling()

    def disable_vram_efficient(self) -> Self:
        self._vram_efficient = False
        return self.disable_vae_slicing().disable_vae_tiling()

    def compile(self, **options: Any) -> Self:
        """Compile the UNet and the VAE decoder in place; `options` are those of `torch.compile`.

        The first chunk of each shape then takes minutes; the rest run faster.
        """
        self.unet.compile(**options)
        self.codec.vae.decoder.compile(**options)
        return self

    def load_lora_weights(self, path: str | Path, scale: float = 1.0) -> Self:
        """Merge a LoRA adapter into the UNet. Several may be merged one after another.

        Raises:
            UserError: the file is no adapter, or belongs to another architecture.
        """
        modules = {name: self.unet.get_submodule(name) for name in find_projections(self.unet, PROJECTIONS)}
        before = {name: module.weight.data for name, module in modules.items()}
        step = load_lora(self.unet, path, scale).step
        for name, weight in before.items():  # merging replaces the tensors that it changes
            if modules[name].weight.data_ptr() != weight.data_ptr():
                self._before_lora.setdefault(name, weight.cpu())
        logger.info("LoRA adapter %s (step %d), scale %g", path, step, scale)
        return self

    def unload_lora_weights(self) -> Self:
        """Restore the UNet's weights from before the first `load_lora_weights`."""
        for name, weight in self._before_lora.items():
            parameter = self.unet.get_submodule(name).weight
            parameter.data = weight.to(parameter.device, parameter.dtype)
        self._before_lora.clear()
        return self

    @contextmanager
    def _modes(self, options: GenerationOptions) -> Iterator[None]:
        """What `options` turn on, for the duration of the block."""
        with ExitStack() as stack:
            if options.enable_deepcache and not self.unet.uses_deepcache:
                stack.enter_context(self.unet.deepcache(DEEPCACHE_INTERVAL))
            if options.vram_efficient and not self._vram_efficient:
                stack.enter_context(self.codec.low_memory())
            yield

    def _enhancer(self, options: GenerationOptions) -> FaceEnhancer | None:
        """The enhancer that `options` ask for, loaded once; the pipeline's own where they ask for none."""
        if not options.enable_upscale or (self.enhancer is not None and options.enhancer in (None, self.enhancer.name)):
            return self.enhancer
        if options.enhancer not in self._enhancers:
            self._enhancers[options.enhancer] = pick_enhancer(options.enhancer).to(self.device, self.dtype)
        return self._enhancers[options.enhancer]

    def _check_fit(self) -> None:
        """Raises UserError when UNet, autoencoder and audio encoder do not fit each other."""
        channels, config = self.codec.channels, self.unet.config
        if (config.in_channels, config.out_channels) != (3 * channels + 1, channels):
            raise UserError(
                f"UNet ({config.in_channels} channels in, {config.out_channels} out) and autoencoder ({channels} "
                f"latent channels) do not belong together: {3 * channels + 1} in and {channels} out are needed; "
                "check the config and the checkpoints"
            )
        if self.audio_encoder.width != config.cross_attention_dim:
            raise UserError(
                f"the UNet expects audio features of width {config.cross_attention_dim}, the Whisper checkpoint gives "
                f"{self.audio_encoder.width}: use tiny for 384 and small for 768"
            )
