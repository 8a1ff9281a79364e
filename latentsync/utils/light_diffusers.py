"""The classes of diffusers that a lip-sync run needs, without its other models, loaders and optional dependencies."""

import importlib.metadata
from typing import TYPE_CHECKING

from latentsync.utils.light_imports import import_light, replaced_function

if TYPE_CHECKING:
    from diffusers.configuration_utils import ConfigMixin, register_to_config
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.vae import DecoderOutput
    from diffusers.models.modeling_outputs import AutoencoderKLOutput
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
else:
    # torch._dynamo imports sympy; diffusers uses it only for a decorator and works without it. It also reads the file
    # lists of all installed packages, only for the versions of three that are not used here.
    with replaced_function(importlib.metadata, "packages_distributions", dict):
        import_light("diffusers.utils", absent=("torch._dynamo",))
    _autoencoder = import_light(
        "diffusers.models.autoencoders.autoencoder_kl",
        bare=("diffusers.models.autoencoders", "diffusers.models.unets", "diffusers.models.transformers"),
        placeholders=(
            "diffusers.loaders",
            "diffusers.loaders.single_file_model",
            "diffusers.quantizers",
            "diffusers.quantizers.quantization_config",
            "diffusers.hooks",
            "diffusers.hooks.group_offloading",
        ),
        forget="diffusers.models",
    )
    AutoencoderKL, AutoencoderKLOutput = _autoencoder.AutoencoderKL, _autoencoder.AutoencoderKLOutput
    DecoderOutput, ConfigMixin = _autoencoder.DecoderOutput, _autoencoder.ConfigMixin
    register_to_config = _autoencoder.register_to_config
    _schedulers = "diffusers.schedulers"
    SchedulerMixin = import_light(f"{_schedulers}.scheduling_utils").SchedulerMixin
    DDIMScheduler = import_light(f"{_schedulers}.scheduling_ddim").DDIMScheduler
    DPMSolverMultistepScheduler = import_light(
        f"{_schedulers}.scheduling_dpmsolver_multistep", placeholders=("scipy.stats",)
    ).DPMSolverMultistepScheduler

__all__ = [
    "AutoencoderKL",
    "AutoencoderKLOutput",
    "ConfigMixin",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "DecoderOutput",
    "SchedulerMixin",
    "register_to_config",
]
