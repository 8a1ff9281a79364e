"""The StyleGAN2 generator of GFPGAN, modulated with features of its encoder (Karras et al. 2020; Wang et al. 2021,
"Towards Real-World Blind Face Restoration with Generative Facial Prior", section 3.4), in plain convolutions.

Parameter names are those of the published GFPGANv1.4 ("clean" architecture: bilinear resizing, no custom kernels).
Legend: N images, C channels, H W pixels, S = 512 width of a style code, L style codes of an image (two per resolution).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 4  # side in pixels of the constant input
SLOPE = 0.2  # of the leaky ReLUs
EPSILON = 1e-8


def resize(x: Tensor, factor: float) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class NormStyleCode(nn.Module):
    """Divides a style code (N, S) by its root mean square."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + EPSILON)


class ModulatedConv2d(nn.Module):
    """Convolution whose input channels are scaled by a style; `demodulate` restores unit variance of the outputs."""

    def __init__(self, channels: int, out_channels: int, kernel: int, style_width: int, demodulate: bool, factor: int):
        super().__init__()
        self.demodulate, self.factor = demodulate, factor
        self.modulation = nn.Linear(style_width, channels)
        scale = 1 / math.sqrt(channels * kernel**2)
        self.weight = nn.Parameter(torch.randn(1, out_channels, channels, kernel, kernel) * scale)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x (N, C, H, W), style (N, S) -> (N, C', fH, fW)."""
        images, channels = x.shape[:2]
        weight = self.weight * self.modulation(style).view(images, 1, channels, 1, 1)
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.square().sum(dim=(2, 3, 4), keepdim=True) + EPSILON)
        if self.factor != 1:
            x = resize(x, self.factor)
        # Every image has its own kernel: a grouped convolution with one group per image.
        out = F.conv2d(x.flatten(0, 1)[None], weight.flatten(0, 1), padding=weight.shape[-1] // 2, groups=images)
        return out[0].unflatten(0, (images, -1))


class StyleConv(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU."""

    def __init__(self, channels: int, out_channels: int, style_width: int, factor: int = 1):
        super().__init__()
        self.modulated_conv = ModulatedConv2d(channels, out_channels, 3, style_width, demodulate=True, factor=factor)
        self.weight = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(1, out_channels, 1, 1))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        out = self.modulated_conv(x, style) * math.sqrt(2)
        return F.leaky_relu(out + self.weight * noise + self.bias, SLOPE)


class ToRGB(nn.Module):
    """Converts features to an image and adds the upsampled image of the previous resolution."""

    def __init__(self, channels: int, style_width: int):
        super().__init__()
        self.modulated_conv = ModulatedConv2d(channels, 3, 1, style_width, demodulate=False, factor=1)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, style: Tensor, smaller: Tensor | None = None) -> Tensor:
        out = self.modulated_conv(x, style) + self.bias
        return out if smaller is None else out + resize(smaller, 2)


class ConstantInput(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, channels, SMALLEST, SMALLEST))


class StyleGAN2Generator(nn.Module):
    """Generator with spatial feature transforms on one half of its channels (CS-SFT).

    Args:
        channels: of each resolution, {4: 512, 8: 512, ...}, up to that of the image.
        style_width: S.
        mlp_depth: layers of `style_mlp`. GFPGAN's encoder replaces its output, so it is loaded but not run.
    """

    def __init__(self, channels: dict[int, int], style_width: int = 512, mlp_depth: int = 8):
        super().__init__()
        sides = sorted(channels)
        layers = [
            layer for _ in range(mlp_depth) for layer in (nn.Linear(style_width, style_width), nn.LeakyReLU(SLOPE))
        ]
        self.style_mlp = nn.Sequential(NormStyleCode(), *layers)
        self.constant_input = ConstantInput(channels[SMALLEST])
        self.style_conv1 = StyleConv(channels[SMALLEST], channels[SMALLEST], style_width)
        self.to_rgb1 = ToRGB(channels[SMALLEST], style_width)
        self.style_convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        for before, side in zip(sides, sides[1:], strict=False):
            self.style_convs.append(StyleConv(channels[before], channels[side], style_width, factor=2))
            self.style_convs.append(StyleConv(channels[side], channels[side], style_width))
            self.to_rgbs.append(ToRGB(channels[side], style_width))
        for index, side in enumerate([sides[0], *(side for side in sides[1:] for _ in range(2))]):
            self.noises.register_buffer(f"noise{index}", torch.randn(1, 1, side, side))

    @property
    def num_codes(self) -> int:
        return 2 * (len(self.to_rgbs) + 1)

    def forward(self, codes: Tensor, scales: list[Tensor], shifts: list[Tensor]) -> Tensor:
        """codes (N, L, S); scales and shifts (N, C / 2, H, W) of each resolution from 8 on -> (N, 3, H, W).

        The noise is that of the checkpoint: new noise in every frame of a video would flicker.
        """
        noise = [getattr(self.noises, f"noise{index}") for index in range(len(self.style_convs) + 1)]
        x = self.constant_input.weight.expand(len(codes), -1, -1, -1)
        x = self.style_conv1(x, codes[:, 0], noise[0])
        image = self.to_rgb1(x, codes[:, 1])
        for level, (to_rgb, scale, shift) in enumerate(zip(self.to_rgbs, scales, shifts, strict=True)):
            code = 2 * level + 1  # the last code of a resolution is also the first of the next
            x = self.style_convs[2 * level](x, codes[:, code], noise[2 * level + 1])
            kept, modulated = x.chunk(2, dim=1)
            x = torch.cat([kept, modulated * scale + shift], dim=1)
            x = self.style_convs[2 * level + 1](x, codes[:, code + 1], noise[2 * level + 2])
            image = to_rgb(x, codes[:, code + 2], image)
        return image
