"""Write a trained model as the files that inference loads."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from latentsync.models.unet import UNet3DConditionModel
from recipes.embedded.denoiser import LAST_TIMESTEP, OneStep


@torch.no_grad()
def fold_one_step(unet: UNet3DConditionModel) -> None:
    """Make the prediction independent of the noise and the timestep, as the model was trained.

    Sampling in more steps, or from another seed, then gives the same result.
    """
    embedding = unet.time_embedding
    last = embedding(torch.tensor([LAST_TIMESTEP]))
    embedding.linear_1.weight.zero_()
    embedding.linear_2.weight.zero_()
    embedding.linear_2.bias.copy_(last[0])
    unet.conv_in.weight[:, : unet.config.out_channels] = 0


def export(model: OneStep, folder: Path) -> None:
    """`folder`/unet.safetensors and vae/ in float16; the config is configs/unet/embedded.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    fold_one_step(model.unet)
    state = {name: tensor.half().contiguous() for name, tensor in model.unet.state_dict().items()}
    save_file(state, folder / "unet.safetensors")
    autoencoder = type(model.autoencoder).from_config(model.autoencoder.config)
    autoencoder.load_state_dict(model.autoencoder.state_dict())
    autoencoder.half().save_pretrained(folder / "vae")
