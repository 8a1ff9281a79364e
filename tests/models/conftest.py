"""Tiny UNets for the tests of this folder."""

import pytest

from latentsync.models.unet_config import UNetConfig


@pytest.fixture(autouse=True, scope="module")
def on_one_thread(one_thread: None) -> None:
    """Maps this small are slower on several threads, much slower when the cores are shared."""


@pytest.fixture(scope="session")
def tiny_config() -> UNetConfig:
    """Two levels with every kind of part: attention, motion modules, down- and upsampling."""
    return UNetConfig.from_dict(
        {
            "sample_size": 8,
            "in_channels": 9,
            "block_out_channels": [8, 16],
            "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
            "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
            "layers_per_block": 2,
            "attention_head_dim": 2,
            "cross_attention_dim": 6,
            "norm_num_groups": 4,
            "use_motion_module": True,
            "motion_module_resolutions": [1, 2],
            "motion_module_kwargs": {"num_attention_heads": 2},
        }
    )
