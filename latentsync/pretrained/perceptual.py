"""LPIPS, the learned perceptual distance of images (Zhang et al. 2018), on VGG16 features.

Legend: N images, C feature channels, H W pixels.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.checkpoints import registry
from latentsync.checkpoints.formats import Checkpoint
from latentsync.checkpoints.loading import load_into, load_state_dict
from latentsync.utils.errors import UserError
from latentsync.utils.paths import CHECKPOINTS_DIR

VGG16 = CHECKPOINTS_DIR / registry.VGG16.path
WITHOUT_VGG16 = (
    "set run.perceptual_random_trunk to true to compare features of an untrained VGG16, or"
    " run.perceptual_loss_weight to 0 to train without this loss"
)
HEADS = "weights/v0.1/vgg.pth"  # in the lpips package
# Widths of the convolutions of each stage (between two poolings); its last map, after the ReLU, is compared.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
MIN_SIDE = 2 ** (len(STAGES) - 1)
# ImageNet's mean and deviation for pixels in [-1, 1], with which the published heads were fitted.
PIXEL_MEAN = (-0.030, -0.088, -0.188)
PIXEL_STD = (0.458, 0.448, 0.450)


class VGG16Trunk(nn.Module):
    """The convolutions of VGG16 (Simonyan and Zisserman 2015) under torchvision's names, `features.{i}.weight`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        ends, channels = [], 3
        for stage in STAGES:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            ends.append(len(layers))
        self.features = nn.Sequential(*layers)
        self.ends = tuple(ends)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(N, 3, H, W), standardized -> five maps (N, C, H / 2^k, W / 2^k), k = 0 .. 4."""
        maps, start = [], 0
        for end in self.ends:
            pixels = self.features[start:end](pixels)
            maps.append(pixels)
            start = end
        return maps


class LPIPS(nn.Module):
    """Perceptual distance with the published linear heads; gradients reach the images, the weights are frozen.

    `LPIPS()` reads torchvision's VGG16 file from its place under `checkpoints/`, `LPIPS(path)` from elsewhere,
    `LPIPS(trunk_state=tensors)` takes the tensors themselves. `LPIPS(random_trunk=True, seed=0)` compares features of
    an untrained VGG16 (He initialization), the paper's "random network": weaker, and it needs no file.
    """

    def __init__(
        self,
        vgg_path: str | Path | None = None,
        *,
        trunk_state: Mapping[str, Tensor] | None = None,
        random_trunk: bool = False,
        seed: int = 0,
    ):
        """Raises UserError when the VGG16 file or the lpips package is missing, or the file holds other weights."""
        super().__init__()
        with torch.device("meta"):  # draws no random numbers, which belong to the training run
            self.heads = nn.ModuleList(nn.Conv2d(stage[-1], 1, 1, bias=False) for stage in STAGES)
        path = Path(vgg_path or VGG16)
        if random_trunk:
            self.trunk = _random_trunk(seed)
        else:
            if trunk_state is None:
                registry.require_file(path, "vgg16", WITHOUT_VGG16)
            self.trunk = _load_trunk(path, load_state_dict(path) if trunk_state is None else trunk_state)
        self.heads.load_state_dict(_read_heads(), assign=True)
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN)[None, :, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD)[None, :, None, None], persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(N, 3, H, W) twice, RGB in [-1, 1], sides of at least 16 pixels -> distances (N, 1, 1, 1), 0 when equal."""
        maps = zip(self.heads, self.features(x), self.features(y), strict=True)
        with torch.autocast(x.device.type, enabled=False):
            stages = [F.conv2d((map_x - map_y) ** 2, head.weight.float()) for head, map_x, map_y in maps]
            return sum(stage.mean(dim=(2, 3), keepdim=True) for stage in stages)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """(N, 3, H, W) in [-1, 1] -> five float32 maps whose every position is a unit vector over channels."""
        if min(pixels.shape[-2:]) < MIN_SIDE:
            raise ValueError(f"LPIPS needs images of at least {MIN_SIDE} pixels a side, got {tuple(pixels.shape)}")
        standardized = (pixels.to(self.mean) - self.mean) / self.std
        return [F.normalize(map_.float(), dim=1, eps=1e-10) for map_ in self.trunk(standardized)]


def _load_trunk(path: Path, state: Mapping[str, Tensor]) -> VGG16Trunk:
    """The published file also holds the classifier, which is not used."""
    convolutions = {name: tensor for name, tensor in state.items() if name.startswith("features.")}
    return load_into(VGG16Trunk, Checkpoint(path, convolutions), exact=True, network="torchvision's VGG16")


def _random_trunk(seed: int) -> VGG16Trunk:
    """He initialization, which depends on the seed alone."""
    with torch.device("meta"):
        trunk = VGG16Trunk()
    trunk.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for layer in trunk.features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
    return trunk


def _read_heads() -> dict[str, Tensor]:
    """Non-negative weights (1, C, 1, 1) of the five stages by name, from the installed lpips package.

    Only its data file is read: importing the package needs torchvision, which is not installed.
    """
    package = find_spec("lpips")  # does not import it
    if package is None or package.origin is None:
        raise UserError(
            "the perceptual loss needs the lpips package for its linear heads; run `pip install --no-deps lpips==0.1.4`"
        )
    state = load_state_dict(Path(package.origin).parent / HEADS)
    return {f"{index}.weight": state[f"lin{index}.model.1.weight"] for index in range(len(STAGES))}
