"""Tolerated differences between a checkpoint and a model: names of wrapping modules, a prefix of all names, and those
that training of a UNet may start from, each with its name and its effect.

Legend: a state is a mapping of tensor names to tensors; `expected` is the model's (possibly on the meta device).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

State = Mapping[str, Tensor]
SHOWN_KEYS = 3

WRAPPING_MODULES = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")
AUDIO_PROJECTION = re.compile(r"\.attn2\.to_[kv]\.weight$")
CHANNEL_AXES = {"conv_in.weight": 1, "conv_out.weight": 0, "conv_out.bias": 0}
TEXT_WIDTH = 768  # of the text features of Stable Diffusion 1.5
IMAGE_LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Patch:
    """A tolerated difference: the tensor names it explains, and how the checkpoint's state is changed to fit.

    keys: (expected, given) -> the differing names that it explains, none when it does not apply.
    fit: (state, expected, names) changes `state` in place.
    """

    name: str
    effect: str
    keys: Callable[[State, State], list[str]]
    fit: Callable[[dict[str, Tensor], State, list[str]], None]

    def apply(self, state: dict[str, Tensor], expected: State) -> None:
        self.fit(state, expected, self.keys(expected, state))


def without_wrappers(expected: State, given: State) -> tuple[list[str], State]:
    """The names of wrapping modules inside the given names, and the tensors by their names without them.

    torch.compile, FSDP and activation checkpointing of single layers leave such names in the middle.
    """
    known = {part for name in expected for part in name.split(".")}
    wrappers = [wrapper for wrapper in WRAPPING_MODULES if wrapper not in known]
    names = [".".join(part for part in name.split(".") if part not in wrappers) for name in given]
    found = [wrapper for wrapper in wrappers if any(wrapper in name.split(".") for name in given)]
    if not found or len(set(names)) < len(names):
        return [], given
    return found, dict(zip(names, given.values(), strict=True))


def without_prefix(expected: State, given: State) -> tuple[str, State]:
    """The prefix that all given names have and no expected one has, and the tensors by their names without it.

    DistributedDataParallel adds `module.`, torch.compile `_orig_mod.`, trainers the attribute that holds the model.
    """
    prefix, names = "", list(given)
    while True:
        heads = {name.partition(".")[0] for name in names}
        head = f"{heads.pop()}." if len(heads) == 1 else ""
        if not head or not all(n.startswith(head) for n in names) or any(n.startswith(head) for n in expected):
            break
        prefix, names = prefix + head, [name.removeprefix(head) for name in names]
    stripped = dict(zip(names, given.values(), strict=True))
    return (prefix, stripped) if expected.keys() & stripped.keys() else ("", given)


def prefix_of_model(expected: State, given: State) -> str:
    """The prefix under which a larger state holds all expected tensors; empty where it does not."""
    first = next(iter(expected))
    for prefix in (name.removesuffix(first) for name in given if name.endswith(f".{first}")):
        if all(prefix + name in given and given[prefix + name].shape == expected[name].shape for name in expected):
            return prefix
    return ""


def mismatched(expected: State, given: State) -> list[str]:
    """Names in both whose shapes differ."""
    return [name for name in expected if name in given and expected[name].shape != given[name].shape]


def find_patches(expected: State, given: State, patches: Sequence[Patch]) -> tuple[list[Patch], list[str]]:
    """The patches that apply, and the differing names that none of them explains."""
    different = [*(expected.keys() ^ given.keys()), *mismatched(expected, given)]
    applying = [(patch, patch.keys(expected, given)) for patch in patches] if different else []
    explained = {name for _, names in applying for name in names}
    return [patch for patch, names in applying if names], sorted(set(different) - explained)


def describe_difference(expected: State, given: State) -> str:
    """One line: counts and the first few names of missing, unknown and differently shaped tensors."""
    shapes = [
        f"{name} {list(given[name].shape)} instead of {list(expected[name].shape)}"
        for name in mismatched(expected, given)
    ]
    groups = {
        "missing": [name for name in expected if name not in given],
        "unknown": [name for name in given if name not in expected],
        "of another shape": shapes,
    }
    return "; ".join(f"{len(names)} {kind}: {_first(names)}" for kind, names in groups.items() if names)


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN_KEYS]) + (", ..." if len(names) > SHOWN_KEYS else "")


def _differ_only_along(expected: Tensor, given: Tensor, axis: int) -> bool:
    without = [list(tensor.shape) for tensor in (expected, given)]
    if len(without[0]) != len(without[1]):
        return False
    for shape in without:
        del shape[axis]
    return without[0] == without[1]


def _channel_keys(prefix: str) -> Callable[[State, State], list[str]]:
    def keys(expected: State, given: State) -> list[str]:
        return [
            name
            for name in mismatched(expected, given)
            if name.startswith(prefix)
            and name in CHANNEL_AXES
            and _differ_only_along(expected[name], given[name], CHANNEL_AXES[name])
        ]

    return keys


def _fit_channels(state: dict[str, Tensor], expected: State, names: list[str]) -> None:
    for name in names:
        axis, given = CHANNEL_AXES[name], state[name]
        fitted = torch.zeros(expected[name].shape, dtype=given.dtype)
        shared = min(given.shape[axis], fitted.shape[axis])
        fitted.narrow(axis, 0, shared).copy_(given.narrow(axis, 0, shared))
        state[name] = fitted


def _audio_keys(expected: State, given: State) -> list[str]:
    return [
        name
        for name in mismatched(expected, given)
        if AUDIO_PROJECTION.search(name) and _differ_only_along(expected[name], given[name], axis=1)
    ]


def _drop(state: dict[str, Tensor], expected: State, names: list[str]) -> None:
    for name in names:
        state.pop(name, None)


def _is_motion(name: str) -> bool:
    return ".motion_modules." in name


def _motion_keys(expected: State, given: State) -> list[str]:
    if any(map(_is_motion, given)):  # some but not all: another architecture, not an image model
        return []
    return [name for name in expected if _is_motion(name)]


def _is_stable_diffusion(expected: State, given: State) -> bool:
    if "conv_in.weight" not in mismatched(expected, given) or any(map(_is_motion, given)):
        return False
    text_widths = {tensor.shape[-1] for name, tensor in given.items() if AUDIO_PROJECTION.search(name)}
    return given["conv_in.weight"].shape[1:2] == (IMAGE_LATENT_CHANNELS,) and text_widths == {TEXT_WIDTH}


def _stable_diffusion_keys(expected: State, given: State) -> list[str]:
    if not _is_stable_diffusion(expected, given):
        return []
    return [*_channel_keys("conv_")(expected, given), *_audio_keys(expected, given)]


def _keep(state: dict[str, Tensor], expected: State, names: list[str]) -> None:
    """Nothing to do: the patches of the single differences change the state."""


UNET_PATCHES = (
    Patch(
        "stable diffusion 1.5",
        "an image model conditioned on text instead of audio; only a start for training",
        _stable_diffusion_keys,
        _keep,
    ),
    Patch(
        "conv_in channels",
        "another number of input channels: the common channels are kept in order, the others start at zero",
        _channel_keys("conv_in"),
        _fit_channels,
    ),
    Patch(
        "conv_out channels",
        "another number of output channels: the common channels are kept in order, the others start at zero",
        _channel_keys("conv_out"),
        _fit_channels,
    ),
    Patch(
        "cross-attention width",
        "attn2.to_k and attn2.to_v take features of another width: they start from fresh weights",
        _audio_keys,
        _drop,
    ),
    Patch("motion modules absent", "an image model: the motion modules start from fresh weights", _motion_keys, _drop),
)
